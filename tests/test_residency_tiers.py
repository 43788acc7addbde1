"""Residency: who leaves first, host RAM, activations, idle models, held requests, victims of failed loads."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import virtual_time
from test_residency import Clock, Loader, settle, spec, use

from deployments.errors import ModelUnavailable, ServeError
from deployments.residency import Residency
from deployments.types import ModelState

READY, PARKED, UNLOADED = ModelState.READY, ModelState.PARKED, ModelState.UNLOADED


@pytest.fixture
async def loader() -> Loader:
    return Loader()


def states(residency: Residency[str]) -> dict[str, ModelState]:
    return {slot.spec.name: slot.state for slot in residency.slots()}


async def test_a_model_that_makes_room_is_parked_and_comes_back_without_a_load(loader: Loader) -> None:
    residency = Residency(10, loader, ram_bytes=20)
    for name in "aba":
        await use(residency, name)
    assert (loader.loaded, loader.parked, loader.unparked, loader.unloaded) == (["a", "b"], ["a", "b"], ["a"], [])
    assert states(residency) == {"a": READY, "b": PARKED}
    assert (residency.used_bytes, residency.tiers.parked_bytes) == (10, 10)


async def test_host_ram_has_its_own_budget_and_the_longest_idle_leave_it(loader: Loader) -> None:
    clock = Clock()
    residency = Residency(10, loader, ram_bytes=20, clock=clock)
    for now, name in enumerate("abcd"):
        clock.now = float(now)
        await use(residency, name)
    assert states(residency) == {"a": UNLOADED, "b": PARKED, "c": PARKED, "d": READY}
    assert loader.unloaded == ["a"]


@pytest.mark.parametrize("can_park", [True, False])
async def test_what_does_not_fit_host_ram_or_cannot_be_parked_is_unloaded(loader: Loader, can_park: bool) -> None:
    loader.can_park = can_park
    residency = Residency(10, loader, ram_bytes=5 if can_park else 100)
    for name in "ab":
        await use(residency, name)
    assert (loader.parked, loader.unloaded) == ([], ["a"])


async def test_a_model_that_does_not_come_back_from_host_ram_is_loaded_anew(loader: Loader) -> None:
    residency = Residency(10, loader, ram_bytes=10)
    for name in "ab":
        await use(residency, name)
    loader.broken["a"] = OSError("bit rot")
    with pytest.raises(ModelUnavailable):
        await use(residency, "a")
    del loader.broken["a"]
    assert residency.tiers.parked_bytes <= 10
    residency.peek(spec("a")).retry_at = 0.0  # type: ignore[union-attr]
    assert await use(residency, "a") == "a"
    assert loader.loaded == ["a", "b", "b", "a"] or loader.loaded.count("a") == 2


async def test_a_parked_model_that_can_no_longer_fit_leaves_host_ram_too(loader: Loader) -> None:
    loader.sizes = {"big": 20, "p": 5}
    residency = Residency(20, loader, ram_bytes=20)
    await use(residency, "big")
    async with residency.lease(spec("p", pinned=True)):
        assert residency.tiers.parked_bytes == 20
    with pytest.raises(ModelUnavailable, match="pinned models hold 5"):
        await use(residency, "big")
    assert residency.tiers.parked_bytes == 0
    assert loader.unloaded == ["big"]


async def test_a_retired_model_leaves_host_ram_too(loader: Loader) -> None:
    residency = Residency(10, loader, ram_bytes=10)
    for name in "ab":
        await use(residency, name)
    residency.retire(spec("a"))
    await settle()
    assert loader.unloaded == ["a"]
    assert residency.tiers.parked_bytes == 0


async def test_what_is_dear_to_reload_stays_longer() -> None:
    loop = asyncio.get_running_loop()
    del loop

    async def main() -> list[str]:
        loader = Loader()
        loader.load_s = {"dear": 8.0, "cheap": 1.0, "new": 1.0}
        clock = asyncio.get_running_loop().time
        residency = Residency(20, loader, clock=clock)
        await use(residency, "dear")
        await asyncio.sleep(1)
        await use(residency, "cheap")
        await asyncio.sleep(2)
        await use(residency, "new")
        return loader.unloaded

    assert await asyncio.to_thread(virtual_time.run, main) == ["cheap"]


async def test_models_kept_by_an_operator_leave_last(loader: Loader) -> None:
    clock = Clock()
    residency = Residency(20, loader, clock=clock)
    residency.device.kept = frozenset({"a:1"})
    for now, name in enumerate("abc"):
        clock.now = float(now)
        await use(residency, name)
    assert loader.unloaded == ["b"]
    residency.device.kept = frozenset({"a:1", "c:1"})
    await use(residency, "d")
    assert len(loader.unloaded) == 2


async def test_activations_once_learned_cost_an_idle_model_its_place(loader: Loader) -> None:
    residency = Residency(35, loader)
    for name in "abc":
        await use(residency, name)
    residency.learn_peak(spec("a"), 4)
    await settle()
    assert loader.unloaded == []
    residency.learn_peak(spec("c"), 8)
    await settle()
    assert len(loader.unloaded) == 1
    await use(residency, "d")
    assert residency.used_bytes + residency.device.peak_bytes <= 35


async def test_activations_keep_no_model_out_whose_weights_fit(loader: Loader) -> None:
    residency = Residency(20, loader)
    await use(residency, "a")
    residency.learn_peak(spec("a"), 1000)
    assert await use(residency, "a") == "a"
    async with residency.lease(spec("a")):
        assert await use(residency, "b") == "b"


def in_virtual_time(main: Callable[[Loader, Residency[str]], Awaitable[None]], **settings: int) -> None:
    async def run() -> None:
        loader = Loader()
        await main(loader, Residency(30, loader, clock=asyncio.get_running_loop().time, **settings))

    virtual_time.run(run)


def test_an_idle_model_leaves_after_its_time_and_not_before() -> None:
    async def main(loader: Loader, residency: Residency[str]) -> None:
        idle = spec("a", idle_unload_s=60)

        async def touch() -> None:
            async with residency.lease(idle):
                pass

        for _ in range(5):
            await touch()
            await asyncio.sleep(50)
        assert loader.unloaded == []
        async with residency.lease(idle):
            await asyncio.sleep(300)
        await asyncio.sleep(59)
        assert loader.unloaded == []
        await asyncio.sleep(2)
        assert loader.unloaded == ["a"]

    in_virtual_time(main)


def test_an_idle_model_is_parked_where_there_is_ram_and_pinned_or_kept_ones_stay() -> None:
    async def main(loader: Loader, residency: Residency[str]) -> None:
        residency.device.kept = frozenset({"k:1"})
        for name, fields in {"a": {}, "k": {}, "p": {"pinned": True}}.items():
            async with residency.lease(spec(name, idle_unload_s=10, **fields)):
                pass
        await asyncio.sleep(100)
        assert loader.parked == ["a"]
        assert states(residency) == {"a": PARKED, "k": READY, "p": READY}

    in_virtual_time(main, ram_bytes=10)


def test_a_new_idle_time_counts_at_once() -> None:
    async def main(loader: Loader, residency: Residency[str]) -> None:
        async with residency.lease(spec("a")):
            pass
        residency.adopt(spec("a", idle_unload_s=1000))
        residency.adopt(spec("a", idle_unload_s=5))
        await asyncio.sleep(6)
        assert loader.unloaded == ["a"]

    in_virtual_time(main)


def test_no_more_requests_are_held_than_allowed_and_the_rest_are_told_when_to_come_back() -> None:
    async def main(loader: Loader, residency: Residency[str]) -> None:
        loader.load_s = {"a": 8.0}
        await use(residency, "a")
        await residency.evict(spec("a"))
        held = [asyncio.create_task(use(residency, "a")) for _ in range(3)]
        await asyncio.sleep(2)
        with pytest.raises(ModelUnavailable, match="3 requests wait for it already") as caught:
            await use(residency, "a")
        assert caught.value.retry_after_s == pytest.approx(6.0)
        assert await asyncio.gather(*held) == ["a"] * 3
        assert await use(residency, "a") == "a"

    in_virtual_time(main, max_held=3)


def test_the_wait_for_a_model_never_loaded_is_told_from_the_speed_of_others() -> None:
    async def main(loader: Loader, residency: Residency[str]) -> None:
        assert residency.wait_s(spec("b")) == 1.0
        loader.load_s, loader.sizes = {"a": 4.0, "b": 60.0}, {"a": 10, "b": 20}
        await use(residency, "a")
        task = asyncio.create_task(use(residency, "b"))
        await asyncio.sleep(1)
        assert residency.wait_s(spec("b")) == pytest.approx(7.0)
        await task

    in_virtual_time(main)


def test_host_ram_is_faster_and_that_is_told() -> None:
    async def main(loader: Loader, residency: Residency[str]) -> None:
        loader.load_s, loader.unpark_s = {"a": 4.0}, 0.5
        for _ in range(2):
            await use(residency, "a")
            await residency.evict(spec("a"))
        assert residency.wait_s(spec("a")) == pytest.approx(0.5)

    in_virtual_time(main, ram_bytes=10)


async def test_the_victims_of_a_load_that_fails_come_back(loader: Loader) -> None:
    residency = Residency(20, loader)
    for name in "ab":
        await use(residency, name)
    loader.sizes["big"], loader.broken["big"] = 15, OSError("no")
    with pytest.raises(ModelUnavailable):
        await use(residency, "big")
    await settle()
    assert {name: state for name, state in states(residency).items() if name != "big"} == {"a": READY, "b": READY}


async def test_a_failed_load_whose_room_is_taken_gives_nothing_back(loader: Loader) -> None:
    residency = Residency(10, loader)
    await use(residency, "a")
    loader.gate.clear()
    loader.broken["b"] = OSError("no")
    failing = asyncio.create_task(use(residency, "b"))
    await settle()
    waiting = asyncio.create_task(use(residency, "c"))
    await settle()
    loader.gate.set()
    with pytest.raises(ServeError):
        await failing
    assert await waiting == "c"
    await settle()
    assert residency.used_bytes <= 10


async def test_the_limit_of_loads_may_change_while_they_wait(loader: Loader) -> None:
    loader.gate.clear()
    residency = Residency(100, loader, max_loads=1)
    tasks = [asyncio.create_task(use(residency, name)) for name in "abcd"]
    await settle()
    assert loader.n_loading == 1
    residency.tiers.max_loads = 3
    loader.gate.set()
    await asyncio.gather(*tasks)
    assert loader.peak_loading == 3


async def test_a_model_larger_than_its_files_said_waits_for_room_with_the_size_now_known(loader: Loader) -> None:
    loader.measured["big"] = 15
    residency = Residency(20, loader)
    async with residency.lease(spec("a")):
        waiting = asyncio.create_task(use(residency, "big"))
        await settle()
        assert not waiting.done()
        assert residency.used_bytes <= 20
    assert await waiting == "big"
    assert (residency.used_bytes, loader.loaded) == (15, ["a", "big", "big"])


async def test_a_model_used_once_leaves_before_one_that_is_used_again_and_again(loader: Loader) -> None:
    clock = Clock()
    residency = Residency(20, loader, clock=clock)
    for now, name in enumerate(["often", "often", "often", "once"]):
        clock.now = 10.0 * now
        await use(residency, name)
    clock.now = 35.0
    await use(residency, "new")
    assert loader.unloaded == ["once"], "although it was the last to be used"
    clock.now = 1000.0
    for name in ("new", "new", "newer"):
        clock.now += 1.0
        await use(residency, name)
    assert loader.unloaded == ["once", "often"], "nobody lives on old fame"
