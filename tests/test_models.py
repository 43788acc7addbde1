"""ModelTable: a configuration change never breaks what works, and says what it could not do."""

import asyncio
from typing import Any, cast

import pytest

from deployments.batching import BatchQueue
from deployments.engines.base import Engine
from deployments.errors import ModelNotFound, ModelUnavailable
from deployments.loaded import LoadedModel
from deployments.models import ModelTable
from deployments.orders import LOAD, UNLOAD, Order, Verb
from deployments.residency import Residency
from deployments.spec import ModelSpec
from deployments.turns import Turns
from deployments.types import ModelState, ModelStatus, Signature


class FakeEngine:
    signature = Signature((), ())
    labels = ("no", "yes")


class Loader:
    """Loads anything but sources whose path contains `bad`."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.unloads: list[str] = []

    async def estimate(self, spec: ModelSpec) -> int:
        if "bad" in str(spec.source.path):
            raise ModelUnavailable("no such files", reason="no such files", retry_after_s=60.0)
        return 10

    async def load(self, spec: ModelSpec) -> LoadedModel:
        self.loads.append(f"{spec.key} {spec.source.path}")

        async def run(items: Any) -> Any:
            return items

        queue = BatchQueue(run, spec.batch, Turns().of("m"))
        return LoadedModel(spec, cast(Engine, FakeEngine()), queue, cast(Any, None))

    def size_bytes(self, model: LoadedModel) -> int:
        return 10

    def parked_bytes(self, model: LoadedModel) -> int | None:
        return None

    async def unload(self, model: LoadedModel) -> None:
        self.unloads.append(f"{model.spec.key} {model.spec.source.path}")


class Case:
    def __init__(self, budget: int = 100) -> None:
        self.loader = Loader()
        self.residency: Residency[LoadedModel] = Residency(budget, self.loader)
        self.table = ModelTable(self.residency, self.loader)
        self.residency.bases.check = lambda *_: None  # these are no real adapters

    def apply(self, *models: Any, **settings: Any) -> None:
        self.table.configure({"models": list(models), **settings})

    async def use(self, key: str) -> str | None:
        async with self.residency.lease(self.table.spec(key)) as model:
            return model.spec.source.path

    def states(self) -> dict[str, ModelState]:
        return {s.key: s.state for s in self.table.statuses()}


def entry(name: str, path: str = "/v1", **fields: Any) -> dict[str, Any]:
    return {"name": name, "task": "fill-mask", "source": {"path": path}, **fields}


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_pinned_models_load_by_themselves_and_others_on_demand() -> None:
    case = Case()
    case.apply(entry("a", pinned=True), entry("b"))
    await settle()
    assert case.states() == {"a:1": ModelState.READY, "b:1": ModelState.UNLOADED}
    assert await case.use("b:1") == "/v1"


async def test_the_same_configuration_again_changes_nothing() -> None:
    case = Case()
    for _ in range(3):
        case.apply(entry("a", pinned=True))
        await settle()
    assert case.loader.loads == ["a:1 /v1"]


async def test_a_changed_model_is_ready_before_the_old_one_leaves() -> None:
    case = Case()
    case.apply(entry("a", pinned=True))
    await settle()
    case.apply(entry("a", "/v2", pinned=True))
    assert await case.use("a:1") == "/v1"
    await settle()
    assert await case.use("a:1") == "/v2"
    await settle()
    assert case.loader.unloads == ["a:1 /v1"]


async def test_a_change_that_cannot_load_leaves_the_old_one_serving_and_says_why() -> None:
    case = Case()
    case.apply(entry("a", pinned=True))
    await settle()
    case.apply(entry("a", "/bad", pinned=True))
    await settle()
    assert await case.use("a:1") == "/v1"
    assert case.table.rejected == {"a:1": "no such files"}
    case.apply(entry("a", pinned=True))
    assert case.table.rejected == {}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({**entry("a"), "task": "fill-msk"}, "task"),
        ({**entry("a"), "engine": "tensor"}, "engine"),
        ({**entry("a"), "options": {"topk": 3}}, "topk"),
        ({**entry("a"), "source": {}}, "source"),
    ],
)
async def test_a_wrong_entry_keeps_what_was_there_and_costs_no_other(wrong: dict[str, Any], why: str) -> None:
    case = Case()
    case.apply(entry("a"), entry("b"))
    case.apply(wrong, entry("b"), entry("c"))
    assert why in case.table.rejected["a:1"]
    assert set(case.states()) == {"a:1", "b:1", "c:1"}
    assert await case.use("a:1") == "/v1"


@pytest.mark.parametrize("config", [None, [], "x", {"models": "x"}, {"models": {"a": 1}}])
async def test_a_configuration_nothing_can_be_read_from_changes_nothing(config: Any) -> None:
    case = Case()
    case.apply(entry("a"))
    case.table.configure(config)
    assert set(case.states()) == {"a:1"}
    assert case.table.rejected


async def test_a_removed_model_is_not_offered_but_answers_while_it_drains() -> None:
    case = Case()
    case.apply(entry("a"), drain_s=0.05)
    await case.use("a:1")
    case.apply(drain_s=0.05)
    [status] = case.table.statuses()
    assert (status.is_leaving, status.state) == (True, ModelState.READY)
    assert await case.use("a:1") == "/v1"
    await asyncio.sleep(0.1)
    await settle()
    assert case.loader.unloads == ["a:1 /v1"]
    assert case.states() == {}
    with pytest.raises(ModelNotFound):
        case.table.spec("a:1")


async def test_a_model_removed_and_back_keeps_its_place_in_memory() -> None:
    case = Case()
    case.apply(entry("a"), drain_s=0.05)
    await case.use("a:1")
    case.apply(drain_s=0.05)
    case.apply(entry("a"), drain_s=0.05)
    await asyncio.sleep(0.1)
    assert case.states() == {"a:1": ModelState.READY}
    assert case.loader.loads == ["a:1 /v1"]


async def test_limits_change_without_a_load() -> None:
    case = Case()
    case.apply(entry("a", pinned=True))
    await settle()
    case.apply(entry("a", pinned=True, batch={"max_items": 3}, timeout_s=7))
    slot = case.residency.peek(case.table.spec("a:1"))
    assert slot is not None
    assert slot.model is not None
    assert slot.model.queue.limits.max_items == 3
    assert case.loader.loads == ["a:1 /v1"]
    assert case.table.statuses()[0].timeout_s == 7


async def test_what_is_said_of_a_cold_model_is_made_anew_only_when_it_changes() -> None:
    """A thousand of them are asked about every second; the one asking compares at a glance."""
    case = Case()

    def said() -> ModelStatus:
        (status,) = case.table.statuses()
        return status

    case.apply(entry("a"))
    first = said()
    assert said() is first
    case.apply(entry("a"))
    assert said() is first
    case.apply(entry("a", timeout_s=7), max_held=3)
    assert (said().timeout_s, said().max_held) == (7, 3)
    case.table.obey({"a:1": Order(Verb.UNLOAD)})
    assert (said().state, said().reason) == (ModelState.UNAVAILABLE, "unloaded")
    case.table.obey({})
    assert said().state is ModelState.UNLOADED
    await case.use("a:1")
    assert said().state is ModelState.READY
    assert said().n_ready == 1
    case.apply()
    assert said().is_leaving


async def test_a_model_whose_files_appear_later_heals_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.models._RETRY_S", 0.01)
    monkeypatch.setattr("deployments.slot.BACKOFF_S", 0.01)
    case = Case()
    case.apply(entry("a", "/bad", pinned=True))
    await settle()
    assert case.states() == {"a:1": ModelState.UNAVAILABLE}
    assert case.table.statuses()[0].reason == "no such files"

    async def estimate(spec: ModelSpec) -> int:
        return 10

    monkeypatch.setattr(case.loader, "estimate", estimate)
    await asyncio.sleep(0.1)
    assert case.states() == {"a:1": ModelState.READY}
    assert case.table.rejected == {}


async def test_closing_stops_everything() -> None:
    case = Case()
    case.apply(entry("a", pinned=True), entry("b", "/bad", pinned=True))
    await settle()
    await case.table.aclose()
    assert case.loader.unloads == ["a:1 /v1"]


async def test_an_unloaded_model_leaves_memory_and_is_refused_until_it_is_loaded() -> None:
    case = Case()
    case.apply(entry("a", pinned=True), entry("b"))
    await settle()
    case.table.obey({"a:1": UNLOAD})
    await settle()
    assert case.loader.unloads == ["a:1 /v1"]
    [a, b] = case.table.statuses()
    assert (a.state, a.reason, a.pinned) == (ModelState.UNAVAILABLE, "unloaded", False)
    assert b.state is ModelState.UNLOADED
    with pytest.raises(ModelUnavailable, match="unloaded by an operator"):
        await case.use("a:1")
    case.apply(entry("a", pinned=True), entry("b"))  # Serve calls it again and again
    await settle()
    assert case.states()["a:1"] is ModelState.UNAVAILABLE
    case.table.obey({"a:1": LOAD})
    await settle()
    assert case.states()["a:1"] is ModelState.READY
    assert await case.use("a:1") == "/v1"


async def test_an_unload_lets_the_request_on_board_finish_and_a_load_may_come_meanwhile() -> None:
    case = Case()
    case.apply(entry("a"))
    async with case.residency.lease(case.table.spec("a:1")):
        case.table.obey({"a:1": UNLOAD})
        await settle()
        assert case.loader.unloads == []
        case.table.obey({})
    await settle()
    assert case.loader.unloads == []
    assert await case.use("a:1") == "/v1"


async def test_a_change_of_an_unloaded_model_waits_for_its_load() -> None:
    case = Case()
    case.apply(entry("a", pinned=True))
    await settle()
    case.table.obey({"a:1": UNLOAD})
    await settle()
    case.apply(entry("a", "/v2", pinned=True))
    await settle()
    assert case.loader.loads == ["a:1 /v1"]
    case.table.obey({})
    await settle()
    assert await case.use("a:1") == "/v2"


async def test_an_order_may_say_how_large_batches_are_until_the_next() -> None:
    case = Case()
    models = (entry("a", pinned=True, batch={"max_items": 4, "max_tokens": 99}), entry("b"))
    case.apply(*models)
    await settle()
    case.table.obey({"a:1": Order(Verb.LOAD, 16)})
    await settle()

    def sizes() -> list[int]:
        return [model.max_items for model in case.table.statuses()]

    assert sizes() == [16, 32]
    assert case.table.spec("a:1").batch.max_tokens == 99
    case.apply(*models)  # Serve calls it again and again
    assert sizes() == [16, 32]
    case.apply(entry("a", "/v2", pinned=True), models[1])
    await settle()
    assert sizes() == [16, 32], "a new configuration of it, too"
    case.table.obey({"a:1": LOAD})
    assert sizes() == [32, 32]
    assert case.loader.loads == ["a:1 /v1", "a:1 /v2"], "no load for the size alone"


@pytest.mark.parametrize("order", [LOAD, UNLOAD, Order(Verb.LOAD, 16)], ids=str)
def test_an_order_is_read_as_it_was_written(order: Order) -> None:
    assert Order.parse(str(order)) == order


def memory(case: Case) -> dict[str, str]:
    return {str(slot.spec.source.path): slot.state.value for slot in case.residency.slots()}


def held_up(case: Case, monkeypatch: pytest.MonkeyPatch, path: str) -> asyncio.Event:
    """Have loads of a path wait for the event that is returned."""
    usual, may = case.loader.load, asyncio.Event()

    async def load(spec: ModelSpec) -> LoadedModel:
        if spec.source.path == path:
            await may.wait()
        return await usual(spec)

    monkeypatch.setattr(case.loader, "load", load)
    return may


@pytest.mark.parametrize("last", ["/v1", "/v3"])
async def test_a_change_given_up_half_way_leaves_nothing_in_memory(last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    case.apply(entry("a", pinned=True))
    await settle()
    may = held_up(case, monkeypatch, "/v2")
    case.apply(entry("a", "/v2", pinned=True))
    await settle()
    case.apply(entry("a", last, pinned=True))
    may.set()
    await settle()
    assert memory(case) == {last: "READY"}
    assert await case.use("a:1") == last


async def test_a_pinned_model_that_still_tries_to_load_takes_only_its_latest_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case()
    case.apply(entry("a", "/bad", pinned=True))
    await settle()
    may = held_up(case, monkeypatch, "/v2")
    case.apply(entry("a", "/v2", pinned=True))
    await settle()
    case.apply(entry("a", "/v3", pinned=True))
    await settle()
    may.set()
    await settle()
    assert await case.use("a:1") == "/v3"
    assert memory(case) == {"/v3": "READY"}


async def test_a_rollback_finds_what_still_drains_and_keeps_it() -> None:
    case = Case()
    case.apply(entry("a"))
    async with case.residency.lease(case.table.spec("a:1")):
        case.apply(entry("a", "/v2"))
        await settle()
        assert await case.use("a:1") == "/v2"
        case.apply(entry("a"))
        await settle()
        assert await case.use("a:1") == "/v1"
    await settle()
    assert memory(case) == {"/v1": "READY"}
    assert case.loader.loads == ["a:1 /v1", "a:1 /v2"]


def chat(name: str, **fields: Any) -> dict[str, Any]:
    return entry(name, task="text-generation", **fields)


async def test_an_adapter_goes_with_its_unloaded_base_says_so_and_comes_back_if_it_is_pinned() -> None:
    case = Case()
    case.apply(chat("base"), chat("a", base="base:1", pinned=True), chat("b", base="base:1"))
    await case.use("b:1")
    await settle()
    assert case.states() == dict.fromkeys(("base:1", "a:1", "b:1"), ModelState.READY)
    case.table.obey({"base:1": UNLOAD})
    await settle()
    base, *adapters = case.table.statuses()
    assert (base.state, base.reason) == (ModelState.UNAVAILABLE, "unloaded")
    for adapter in adapters:
        assert (adapter.state, adapter.reason) == (ModelState.UNAVAILABLE, "its base 'base:1' was unloaded")
        assert (adapter.pinned, adapter.size_bytes) == (False, 0)
    with pytest.raises(ModelUnavailable, match="'base:1' was unloaded by an operator"):
        await case.use("b:1")
    case.table.obey({})
    await settle()
    assert case.states() == {"base:1": ModelState.READY, "a:1": ModelState.READY, "b:1": ModelState.UNLOADED}


async def test_a_change_that_was_under_way_when_its_model_was_unloaded_is_in_force_once_it_is_loaded() -> None:
    case = Case()
    case.apply(entry("a", pinned=True))
    await settle()
    case.apply(entry("a", "/bad", pinned=True))
    await settle()
    case.table.obey({"a:1": UNLOAD})
    await settle()
    assert (memory(case), case.table.rejected) == ({}, {})
    case.apply(entry("a", "/v3", pinned=True))
    case.table.obey({})
    await settle()
    assert memory(case) == {"/v3": "READY"}


async def test_a_model_pinned_while_its_change_is_made_ready_is_loaded() -> None:
    case = Case()
    case.apply(entry("a"))
    case.apply(entry("a", "/v2"))
    case.apply(entry("a", "/v2", pinned=True))
    await settle()
    assert memory(case) == {"/v2": "READY"}
