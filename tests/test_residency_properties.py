"""Residency under any use, in virtual time: its budgets, its leases and its word are kept whatever happens."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import virtual_time
from hypothesis import given, settings
from hypothesis import strategies as st
from test_residency import Loader, spec

from deployments.errors import ModelUnavailable
from deployments.residency import Residency
from deployments.spec import ModelSpec
from deployments.types import ModelState

SIZES = {"a": 5, "b": 10, "c": 15, "d": 20, "e": 25, "f": 80, "p": 5, "a1": 2, "c1": 3, "c2": 1, "d1": 4}
PATIENT_S = 1e6
BASES = {"a1": "a", "c1": "c", "c2": "c", "d1": "d"}  # adapters and what they need


@dataclass(frozen=True)
class Use:
    """One request: when it comes, how long it holds the model, and how long its caller has patience."""

    at_s: float
    name: str
    holds_s: float
    patience_s: float
    peak_bytes: int


USES = st.lists(
    st.builds(
        Use,
        at_s=st.floats(0, 50),
        name=st.sampled_from(sorted(SIZES)),
        holds_s=st.floats(0, 5),
        patience_s=st.one_of(st.just(PATIENT_S), st.floats(0.01, 5)),
        peak_bytes=st.sampled_from([0, 0, 1, 5]),
    ),
    min_size=1,
    max_size=40,
)
FAULTS = st.lists(st.tuples(st.floats(0, 50), st.sampled_from("abce"), st.booleans()), max_size=6)


def entry_of(name: str) -> ModelSpec:
    base = f"{BASES[name]}:1" if name in BASES else None
    return spec(name, pinned=name == "p", idle_unload_s=7.0, base=base)


class Checked(Loader):
    """Checks, at every move, that nobody uses what is moved."""

    def __init__(self, random: Any) -> None:
        super().__init__()
        self.sizes = dict(SIZES)
        self.measured = {"b": 12, "c": 13, "c1": 4, "d1": 3}
        self.load_s = {name: random.uniform(0, 3) for name in SIZES}
        self.unpark_s = random.uniform(0, 0.5)
        self.users: dict[str, int] = {}
        self.here: set[str] = set()
        self.on_device: set[str] = set()

    async def load(self, spec: Any) -> str:
        model = await super().load(spec)
        assert model not in self.here, "loaded twice"
        assert BASES.get(model) in self.on_device | {None}, "loaded without its base"
        self.here.add(model)
        self.on_device.add(model)
        return model

    async def unload(self, model: str) -> None:
        assert not self.users.get(model), "unloaded in use"
        assert model in self.here, "unloaded twice"
        self._leaves(model)
        await super().unload(model)
        self.here.discard(model)

    async def park(self, model: str) -> None:
        assert not self.users.get(model), "parked in use"
        self._leaves(model)
        await super().park(model)

    async def unpark(self, model: str) -> None:
        assert BASES.get(model) in self.on_device | {None}, "back without its base"
        await super().unpark(model)
        self.on_device.add(model)

    def _leaves(self, model: str) -> None:
        assert not {name for name in self.on_device if BASES.get(name) == model}, "adapters without their base"
        self.on_device.discard(model)


@settings(max_examples=150, deadline=None)
@given(USES, FAULTS, st.integers(25, 70), st.sampled_from([0, 15, 60]), st.randoms(use_true_random=False))
def test_budgets_leases_and_pins_hold_whatever_comes(
    uses: list[Use], faults: list[tuple[float, str, bool]], budget: int, ram: int, random: Any
) -> None:
    virtual_time.run(lambda: _play(uses, faults, budget, ram, Checked(random)))


async def _play(uses: list[Use], faults: list[tuple[float, str, bool]], budget: int, ram: int, loader: Checked) -> None:
    loop = asyncio.get_running_loop()
    residency = Residency(budget, loader, clock=loop.time, ram_bytes=ram)
    residency.bases.base_of = lambda spec: entry_of(spec.base.partition(":")[0]) if spec.base else None

    def check() -> None:
        assert residency.used_bytes <= budget
        assert residency.tiers.parked_bytes <= ram

    async def one(use: Use) -> None:
        await asyncio.sleep(use.at_s)
        entry = entry_of(use.name)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(use.patience_s):
                    await stack.enter_async_context(residency.lease(entry))
            except (ModelUnavailable, TimeoutError):
                assert loop.time() < PATIENT_S, "waits for ever"
                check()
                return
            loader.users[use.name] = loader.users.get(use.name, 0) + 1
            try:
                residency.learn_peak(entry, use.peak_bytes)
                check()
                await asyncio.sleep(use.holds_s)
                slot = residency.peek(entry)
                assert slot is not None
                assert slot.state is ModelState.READY
                assert BASES.get(use.name) in loader.on_device | {None}
                check()
            finally:
                loader.users[use.name] -= 1

    async def fault(at_s: float, name: str, heals: bool) -> None:
        await asyncio.sleep(at_s)
        if heals:
            loader.broken.pop(name, None)
        else:
            loader.broken[name] = OSError(name)

    await asyncio.gather(*map(one, uses), *(fault(*f) for f in faults))
    await asyncio.sleep(1000)
    check()
    assert loader.unloaded.count("p") == 0, "pinned"
    for slot in residency.slots():
        assert slot.task is None
        assert slot.n_leases == slot.n_held == 0
        assert (slot.model in loader.here) == (slot.model is not None)
        expected = (slot.size_bytes > 0, slot.parked_bytes > 0)
        assert expected == (slot.state is ModelState.READY, slot.state is ModelState.PARKED), slot
        if slot.spec.name != "p":
            assert slot.state is not ModelState.READY, "idle for long"
    await residency.aclose()
    assert loader.here == set()
    assert residency.used_bytes == residency.tiers.parked_bytes == 0
