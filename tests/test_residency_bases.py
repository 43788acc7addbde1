"""Adapters and their base: where an adapter is, its base is too, whoever comes and whatever fails."""

import asyncio

import pytest
import virtual_time
from test_residency import Loader, settle, spec, use

from deployments.errors import ModelUnavailable
from deployments.residency import Residency
from deployments.spec import ModelSpec
from deployments.types import ModelState

BASES = {"A:1": spec("A"), "B:1": spec("B")}


def adapter(name: str, base: str = "A", **fields: object) -> ModelSpec:
    return spec(name, base=f"{base}:1", **fields)


@pytest.fixture
async def loader() -> Loader:
    loader = Loader()
    loader.sizes = {"A": 40, "B": 40, "a": 5, "b": 5, "c": 5}
    return loader


def pool(budget: int, loader: Loader, **fields: int) -> Residency[str]:
    residency = Residency(budget, loader, clock=asyncio.get_running_loop().time, **fields)
    residency.bases.base_of = lambda spec: BASES[spec.base] if spec.base else None
    return residency


def states(residency: Residency[str]) -> dict[str, str]:
    return {slot.spec.name: slot.state.value for slot in residency.slots()}


async def hold(residency: Residency[str], entry: ModelSpec, seconds: float = 0.0) -> None:
    async with residency.lease(entry):
        await asyncio.sleep(seconds)


async def test_an_adapter_is_ready_only_with_its_base(loader: Loader) -> None:
    residency = pool(100, loader)
    await hold(residency, adapter("a"))
    assert loader.loaded == ["A", "a"]
    assert residency.used_bytes == 45


async def test_a_base_stays_while_an_adapter_of_it_is_in_use(loader: Loader) -> None:
    residency = pool(50, loader)
    async with residency.lease(adapter("a")):
        waiting = asyncio.create_task(use(residency, "B"))
        await settle()
        assert loader.unloaded == []
        assert not await residency.evict(BASES["A:1"])
    assert await waiting == "B"
    assert loader.unloaded == ["a", "A"]  # the adapter first
    assert residency.used_bytes == 40


async def test_an_idle_adapter_goes_with_its_base(loader: Loader) -> None:
    residency = pool(100, loader)
    await hold(residency, adapter("a"))
    await hold(residency, adapter("b"))
    assert await residency.evict(BASES["A:1"])
    assert states(residency) == {"A": "UNLOADED", "a": "UNLOADED", "b": "UNLOADED"}
    assert sorted(loader.unloaded[:2]) == ["a", "b"]
    assert residency.used_bytes == 0


@pytest.mark.parametrize("order", [["a", "A"], ["A", "a"]])
async def test_both_go_when_both_are_removed_in_whatever_order(loader: Loader, order: list[str]) -> None:
    residency = pool(100, loader)
    await hold(residency, adapter("a"))
    for name in order:
        residency.retire(adapter("a") if name == "a" else BASES["A:1"])
    await settle()
    assert loader.unloaded == ["a", "A"]
    assert residency.slots() == []


async def test_a_base_that_got_its_room_through_an_adapter_does_not_wait_behind_others(loader: Loader) -> None:
    residency = pool(50, loader)
    await use(residency, "A")
    await use(residency, "B")  # A is out, and its size known
    loader.sizes["x"] = 10
    async with asyncio.timeout(5):
        await asyncio.gather(hold(residency, adapter("a")), use(residency, "x"), use(residency, "A"))
    assert loader.loaded == ["A", "B", "A", "a", "x"]


async def test_an_idle_adapter_can_go_alone(loader: Loader) -> None:
    residency = pool(45, loader)
    await hold(residency, adapter("a"))
    await hold(residency, adapter("b"))
    assert loader.unloaded == ["a"]
    assert residency.used_bytes == 45


async def test_a_pinned_adapter_pins_its_base(loader: Loader) -> None:
    residency = pool(50, loader)
    await hold(residency, adapter("a", pinned=True))
    with pytest.raises(ModelUnavailable, match="needs 40 bytes; the budget is 50, of which pinned models hold 45"):
        await use(residency, "B")


async def test_an_adapter_that_does_not_fit_beside_its_base_says_so(loader: Loader) -> None:
    residency = pool(42, loader)
    for _ in range(2):  # with a base of a size not known yet, and known
        with pytest.raises(ModelUnavailable, match="'a:1' does not fit: it needs 45 bytes"):
            await hold(residency, adapter("a"))
        await asyncio.sleep(0)
        residency.peek(adapter("a")).retry_at = 0.0  # type: ignore[union-attr]
    await hold(residency, BASES["A:1"])


def test_two_families_that_fit_only_one_at_a_time_take_turns() -> None:
    async def play() -> None:
        loader = Loader()
        loader.sizes = {"A": 40, "B": 40, "a": 5, "b": 5, "c": 5, "d": 5}
        loader.load_s = {"A": 2, "B": 3, "a": 1, "b": 0.5}
        residency = pool(50, loader)
        uses = [("a", "A"), ("b", "B"), ("c", "A"), ("d", "B")] * 5
        async with asyncio.timeout(1000):
            await asyncio.gather(*(hold(residency, adapter(*who), 0.3) for who in uses))

    virtual_time.run(play)


def test_a_base_that_fails_is_named_and_its_adapter_comes_back_with_it() -> None:
    async def play() -> None:
        loader = Loader()
        residency = pool(100, loader)
        loader.broken["A"] = OSError("disk on fire")
        for wait in (1.0, 2.0, 4.0):
            with pytest.raises(ModelUnavailable, match="model 'A:1' cannot be loaded: OSError: disk on fire") as caught:
                await hold(residency, adapter("a"))
            assert caught.value.retry_after_s == pytest.approx(wait)
            await asyncio.sleep(wait)
        assert residency.used_bytes == 0
        del loader.broken["A"]
        loader.broken["a"] = OSError("no")
        with pytest.raises(ModelUnavailable, match="'a:1' cannot be loaded") as caught:
            await hold(residency, adapter("a"))
        assert caught.value.retry_after_s == pytest.approx(1.0)  # what was its base's fault was not its own
        await hold(residency, BASES["A:1"])

    virtual_time.run(play)


async def test_what_was_evicted_for_a_load_that_failed_comes_back_base_and_adapter(loader: Loader) -> None:
    residency = pool(50, loader)
    await hold(residency, adapter("a"))
    loader.broken["B"] = OSError("no")
    with pytest.raises(ModelUnavailable):
        await hold(residency, adapter("b", "B"))
    await asyncio.sleep(0.01)
    assert (states(residency)["A"], states(residency)["a"]) == ("READY", "READY")
    assert residency.used_bytes == 45


async def test_adapters_move_to_a_base_that_takes_its_place(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    residency = pool(100, loader)
    new = spec("A", source={"path": "/new"})
    async with residency.lease(adapter("a")), residency.lease(BASES["A:1"]):
        await hold(residency, new)
        monkeypatch.setitem(BASES, "A:1", new)
        residency.retire(spec("A"))
        await settle()
        assert loader.unloaded == []  # a request still runs on the old one
    await settle()
    assert loader.unloaded == ["A"]
    await hold(residency, adapter("a"))
    assert loader.loaded == ["A", "a", "A"]
    assert residency.peek(spec("A")) is None
    assert residency.used_bytes == 45


async def test_a_base_that_goes_for_good_takes_even_pinned_adapters(loader: Loader) -> None:
    residency = pool(100, loader)
    async with residency.lease(adapter("a", pinned=True)):
        residency.retire(BASES["A:1"])
        await settle()
        assert loader.unloaded == []
    await settle()
    assert loader.unloaded == ["a", "A"]
    assert residency.used_bytes == 0


async def test_a_base_larger_than_its_files_said_keeps_its_adapter_waiting_no_longer_than_needed(
    loader: Loader,
) -> None:
    residency = pool(60, loader)
    loader.measured = {"A": 50, "a": 8}
    async with residency.lease(spec("c")):
        waiting = asyncio.create_task(hold(residency, adapter("a")))
        await settle()
    await waiting
    assert residency.used_bytes == 58
    assert residency.peek(BASES["A:1"]).state is ModelState.READY  # type: ignore[union-attr]


def test_a_base_used_through_its_adapter_does_not_count_as_idle() -> None:
    async def play() -> None:
        loader = Loader()
        residency = pool(100, loader)
        base, entry = spec("A", idle_unload_s=10.0), adapter("a")
        residency.bases.base_of = lambda spec: base if spec.base else None
        for _ in range(4):
            await hold(residency, entry)
            await asyncio.sleep(6)
        assert loader.unloaded == []
        await asyncio.sleep(20)
        assert loader.unloaded == ["a", "A"]

    virtual_time.run(play)


async def test_a_base_that_is_replaced_while_its_adapter_waits_for_it_leaves(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    residency, new = pool(100, loader), spec("A", source={"path": "/new"})
    await use(residency, "A")
    loader.load_s = {"a": 0.05}
    waiting = asyncio.create_task(hold(residency, adapter("a")))
    await settle()  # the adapter is being loaded, beside the old one
    monkeypatch.setitem(BASES, "A:1", new)
    residency.retire(spec("A"))
    await waiting
    await settle()
    assert residency.peek(spec("A")) is None
    assert [slot.spec.source.path for slot in residency.slots() if slot.spec.name == "A"] == ["/new"]
    assert residency.used_bytes == 45
