"""ModelTable under any changes, orders and use, in virtual time: the last word holds, nothing else stays in memory."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import virtual_time
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_models import FakeEngine, entry

from deployments.batching import BatchQueue
from deployments.errors import ModelNotFound, ModelUnavailable
from deployments.loaded import LoadedModel
from deployments.models import ModelTable
from deployments.orders import UNLOAD
from deployments.residency import Residency
from deployments.spec import ModelSpec
from deployments.turns import Turns
from deployments.types import ModelState

NAMES = ("a", "b", "c")
ADAPTER = "c"  # of "b"


class Loader:
    """Takes its time; checks that nobody uses what leaves, and that nothing is there twice."""

    def __init__(self) -> None:
        self.here: Counter[tuple[str, str | None]] = Counter()
        self.users: Counter[tuple[str, str | None]] = Counter()

    async def estimate(self, spec: ModelSpec) -> int:
        await asyncio.sleep(0.1)
        if spec.source.path == "/gone":
            raise ModelUnavailable("no such files", reason="no such files", retry_after_s=5.0)
        return 10

    async def load(self, spec: ModelSpec) -> LoadedModel:
        await asyncio.sleep(1.0)
        if spec.source.path == "/broken":
            raise OSError("broken")
        which = spec.key, spec.source.path
        assert not self.here[which], "loaded twice"
        self.here[which] += 1

        async def run(items: Any) -> Any:
            return items

        queue = BatchQueue(run, spec.batch, Turns().of("m"))
        return LoadedModel(spec, cast(Any, FakeEngine()), queue, cast(Any, None))

    def size_bytes(self, model: LoadedModel) -> int:
        return 10

    def parked_bytes(self, model: LoadedModel) -> int | None:
        return None

    async def unload(self, model: LoadedModel) -> None:
        which = model.spec.key, model.spec.source.path
        assert not self.users[which], "unloaded in use"
        self.here[which] -= 1  # as a thread does it, which nobody interrupts
        await asyncio.sleep(0.2)

    async def park(self, model: LoadedModel) -> None:
        raise NotImplementedError

    async def unpark(self, model: LoadedModel) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Step:
    """What happens after `after_s`: a configuration, or orders, or a request."""

    after_s: float
    config: Mapping[str, tuple[str, bool]] | None = None  # path and whether pinned, by name
    unloaded: frozenset[str] | None = None
    use: tuple[str, float, float] | None = None  # who, for how long, with how much patience


PATHS = st.sampled_from(["/v1", "/v2", "/v3", "/gone", "/broken"])
WAITS = st.sampled_from([0.0, 0.05, 0.5, 1.05, 3.0, 40.0])
STEPS = st.lists(
    st.one_of(
        st.builds(Step, WAITS, config=st.dictionaries(st.sampled_from(NAMES), st.tuples(PATHS, st.booleans()))),
        st.builds(Step, WAITS, unloaded=st.frozensets(st.sampled_from(NAMES))),
        st.builds(
            Step, WAITS, use=st.tuples(st.sampled_from(NAMES), st.floats(0, 5), st.sampled_from([0.1, 1.1, 100.0]))
        ),
    ),
    max_size=14,
)


_LEAVES_AS_ITS_BASE_COMES_BACK = [
    Step(1.05, config={"a": ("/v2", False), "b": ("/v2", True), "c": ("/v2", True)}),
    Step(0.05, unloaded=frozenset("b")),
    Step(3.0, config={"a": ("/broken", True), "b": ("/broken", False)}),
    Step(0.05, unloaded=frozenset("a")),
    Step(1.05, config={"a": ("/v1", False), "b": ("/v1", False)}),
]


@example(_LEAVES_AS_ITS_BASE_COMES_BACK, 1000)
@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([25, 1000]))
def test_the_last_word_holds_and_nothing_else_stays(steps: list[Step], budget: int) -> None:
    virtual_time.run(lambda: _play(steps, budget))


def models(config: Mapping[str, tuple[str, bool]]) -> list[dict[str, Any]]:
    found = []
    for name, (path, pinned) in sorted(config.items()):
        base = {"base": "b:1"} if name == ADAPTER else {}
        found.append({**entry(name, path, pinned=pinned), "task": "text-generation", **base})
    return found


async def _play(steps: list[Step], budget: int) -> None:
    loop = asyncio.get_running_loop()
    loader = Loader()
    residency: Residency[LoadedModel] = Residency(budget, loader, clock=loop.time)
    table = ModelTable(cast(Any, residency), cast(Any, loader))
    residency.bases.check = lambda *_: None
    last: Mapping[str, tuple[str, bool]] = {}
    unloaded: frozenset[str] = frozenset()

    async def use(name: str, holds_s: float, patience_s: float) -> None:
        try:
            async with asyncio.timeout(patience_s):
                lease = residency.lease(table.spec(f"{name}:1"))
                model = await lease.__aenter__()
        except (ModelNotFound, ModelUnavailable, TimeoutError):
            return
        which = model.spec.key, model.spec.source.path
        loader.users[which] += 1
        assert loader.here[which] == 1
        await asyncio.sleep(holds_s)
        assert loader.here[which] == 1
        loader.users[which] -= 1
        await lease.__aexit__(None, None, None)

    uses = []
    for step in steps:
        await asyncio.sleep(step.after_s)
        if step.config is not None:
            last = step.config
            table.configure({"models": models(last), "drain_s": 2.0})
        elif step.unloaded is not None:
            unloaded = step.unloaded
            table.obey({f"{name}:1": UNLOAD for name in unloaded})
        elif step.use is not None:
            uses.append(asyncio.create_task(use(*step.use)))
        assert residency.used_bytes <= budget
    await asyncio.gather(*uses)
    await asyncio.sleep(500)
    _check_end(table, residency, loader, last, unloaded, has_room=budget > 100)
    await table.aclose()
    assert not +loader.here


def _check_end(
    table: ModelTable,
    residency: Residency[LoadedModel],
    loader: Loader,
    last: Mapping[str, tuple[str, bool]],
    unloaded: frozenset[str],
    *,
    has_room: bool,
) -> None:
    statuses = {status.name: status for status in table.statuses()}
    for name, (path, pinned) in last.items():
        if name == ADAPTER and "b" not in last:
            continue  # refused, or what was there before stays
        assert name in statuses
        is_barred = name in unloaded or (name == ADAPTER and "b" in unloaded)
        needed = [path] if name != ADAPTER else [path, last["b"][0]]
        is_good = not {"/gone", "/broken"} & set(needed) and not is_barred
        if is_good and has_room:
            assert table.spec(f"{name}:1").source.path == path, "the last word"
            assert statuses[name].state is ModelState.READY or not pinned
        if is_barred:
            assert statuses[name].state is ModelState.UNAVAILABLE
    in_force = {entry.spec.digest for entry in table._entries.values()}
    pending = {entry.pending.digest for entry in table._entries.values() if entry.pending}
    for slot in residency.slots():
        assert slot.n_leases == 0 or slot.task is not None or slot.spec.pinned
        is_wanted = slot.spec.digest in in_force | pending or bool(
            slot.following
        )  # a base, as long as adapters rest on it
        assert slot.model is None or is_wanted, "nobody asks for it any more"
        if slot.model is not None and slot.spec.name in unloaded:
            raise AssertionError("it was unloaded")
    if all(slot.task is None for slot in residency.slots()):  # else something is on its way just now
        kept = {(slot.spec.key, slot.spec.source.path) for slot in residency.slots() if slot.model is not None}
        assert set(+loader.here) == kept
