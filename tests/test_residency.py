"""Residency: never over budget, never evicts what is used, one load however many ask, failures back off."""

import asyncio

import pytest

from deployments.errors import ModelUnavailable
from deployments.residency import Residency
from deployments.spec import ModelSpec


def spec(name: str, **fields: object) -> ModelSpec:
    return ModelSpec.model_validate({"name": name, "task": "fill-mask", "source": {"path": "/x"}, **fields})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Loader:
    """Models are their own names; each takes 10 bytes unless said otherwise."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.sizes: dict[str, int] = {}
        self.measured: dict[str, int] = {}
        self.broken: dict[str, Exception] = {}
        self.parked: list[str] = []
        self.unparked: list[str] = []
        self.can_park = True
        self.load_s: dict[str, float] = {}
        self.unpark_s = 0.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.n_loading = self.peak_loading = 0

    async def estimate(self, spec: ModelSpec) -> int:
        return self.sizes.get(spec.name, 10)

    async def load(self, spec: ModelSpec) -> str:
        self.n_loading += 1
        self.peak_loading = max(self.peak_loading, self.n_loading)
        try:
            await self.gate.wait()
            await asyncio.sleep(self.load_s.get(spec.name, 0))
        finally:
            self.n_loading -= 1
        if spec.name in self.broken:
            raise self.broken[spec.name]
        self.loaded.append(spec.name)
        return spec.name

    def size_bytes(self, model: str) -> int:
        return self.measured.get(model, self.sizes.get(model, 10))

    async def unload(self, model: str) -> None:
        await asyncio.sleep(0)
        self.unloaded.append(model)

    def parked_bytes(self, model: str) -> int | None:
        return self.size_bytes(model) if self.can_park else None

    async def park(self, model: str) -> None:
        await asyncio.sleep(0)
        self.parked.append(model)

    async def unpark(self, model: str) -> None:
        await asyncio.sleep(self.unpark_s)
        if model in self.broken:
            raise self.broken[model]
        self.unparked.append(model)


@pytest.fixture
async def loader() -> Loader:
    return Loader()


async def use(residency: Residency[str], name: str) -> str:
    async with residency.lease(spec(name)) as model:
        return model


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_a_hundred_requests_for_a_cold_model_load_it_once(loader: Loader) -> None:
    residency = Residency(100, loader)
    assert await asyncio.gather(*(use(residency, "a") for _ in range(100))) == ["a"] * 100
    assert loader.loaded == ["a"]


async def test_several_models_load_at_once_up_to_the_limit(loader: Loader) -> None:
    residency = Residency(100, loader, max_loads=2)
    await asyncio.gather(*(use(residency, n) for n in "abcd"))
    assert loader.peak_loading == 2


async def test_the_least_recently_used_model_makes_room(loader: Loader) -> None:
    clock = Clock()
    residency = Residency(20, loader, clock=clock)
    for now, name in enumerate("abac"):
        clock.now = now
        await use(residency, name)
    assert loader.unloaded == ["b"]


async def test_a_leased_model_is_never_evicted(loader: Loader) -> None:
    residency = Residency(10, loader)
    async with residency.lease(spec("a")):
        waiting = asyncio.create_task(use(residency, "b"))
        await settle()
        assert loader.unloaded == []
    assert await waiting == "b"
    assert loader.unloaded == ["a"]


async def test_a_pinned_model_is_never_evicted(loader: Loader) -> None:
    residency = Residency(20, loader)
    async with residency.lease(spec("p", pinned=True)):
        pass
    for name in "abc":
        await use(residency, name)
    assert "p" not in loader.unloaded


async def test_the_first_caller_leaving_does_not_stop_the_load(loader: Loader) -> None:
    loader.gate.clear()
    residency = Residency(100, loader)
    first, second = (asyncio.create_task(use(residency, "a")) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    loader.gate.set()
    assert await second == "a"
    assert loader.loaded == ["a"]


async def test_a_failed_load_backs_off_and_tells_why(loader: Loader) -> None:
    clock = Clock()
    loader.broken["a"] = OSError("disk on fire")
    residency = Residency(100, loader, clock=clock)
    with pytest.raises(ModelUnavailable, match="disk on fire"):
        await use(residency, "a")
    del loader.broken["a"]
    with pytest.raises(ModelUnavailable, match="disk on fire") as caught:
        await use(residency, "a")
    assert caught.value.retry_after_s == pytest.approx(1.0)
    clock.now = 1.5
    assert await use(residency, "a") == "a"


async def test_back_off_grows_and_is_bounded(loader: Loader) -> None:
    clock = Clock()
    loader.broken["a"] = OSError("no")
    residency = Residency(100, loader, clock=clock)
    waits = []
    for _ in range(8):
        with pytest.raises(ModelUnavailable) as caught:
            await use(residency, "a")
        waits.append(caught.value.retry_after_s)
        clock.now += 100.0
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


async def test_a_broken_model_does_not_hurt_its_neighbours(loader: Loader) -> None:
    loader.broken["bad"] = RuntimeError("no")
    residency = Residency(20, loader)
    results = await asyncio.gather(*(use(residency, n) for n in ("a", "bad", "b")), return_exceptions=True)
    assert results[0] == "a"
    assert isinstance(results[1], ModelUnavailable)
    assert results[2] == "b"
    assert residency.used_bytes <= 20


async def test_a_model_larger_than_the_budget_is_refused_with_the_numbers(loader: Loader) -> None:
    loader.sizes["big"] = 50
    residency = Residency(20, loader)
    await use(residency, "a")
    with pytest.raises(ModelUnavailable, match="needs 50 bytes; the budget is 20"):
        await use(residency, "big")
    assert loader.unloaded == []


async def test_a_model_measured_larger_than_the_budget_is_given_back(loader: Loader) -> None:
    loader.measured["a"] = 30
    residency = Residency(20, loader)
    with pytest.raises(ModelUnavailable, match="needs 30"):
        await use(residency, "a")
    assert residency.used_bytes == 0
    assert loader.unloaded == ["a"]


async def test_a_retired_model_leaves_when_its_last_user_does(loader: Loader) -> None:
    residency = Residency(100, loader)
    async with residency.lease(spec("a")):
        residency.retire(spec("a"))
        await settle()
        assert loader.unloaded == []
    await settle()
    assert loader.unloaded == ["a"]
    assert residency.used_bytes == 0
    assert residency.peek(spec("a")) is None


async def test_a_model_retired_while_it_loads_is_unloaded(loader: Loader) -> None:
    loader.gate.clear()
    residency = Residency(100, loader)
    task = asyncio.create_task(use(residency, "a"))
    await settle()
    task.cancel()
    residency.retire(spec("a"))
    loader.gate.set()
    await settle()
    assert loader.unloaded == ["a"]
    assert residency.peek(spec("a")) is None


async def test_asking_for_a_model_that_is_being_evicted_loads_it_again(loader: Loader) -> None:
    residency = Residency(10, loader)
    await use(residency, "a")
    evicting = asyncio.create_task(residency.evict(spec("a")))
    await asyncio.sleep(0)
    assert await use(residency, "a") == "a"
    assert await evicting
    assert loader.loaded == ["a", "a"]


async def test_closing_unloads_everything(loader: Loader) -> None:
    residency = Residency(100, loader)
    await use(residency, "a")
    await residency.aclose()
    assert loader.unloaded == ["a"]
