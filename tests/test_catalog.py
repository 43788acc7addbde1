"""Catalog: orders reach every replica, new ones too, outlive the process, and are answered when they are done."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from ray.serve.handle import DeploymentHandle

from deployments import catalog as catalog_module
from deployments.catalog import Catalog
from deployments.errors import ModelUnavailable, PoolUnavailable
from deployments.orders import LOAD, UNLOAD, Orders, Verb
from deployments.revisions import Revisions, brief, complete
from deployments.types import ModelState, ModelStatus, PoolStatus, Signature, Task


class Store:
    def __init__(self) -> None:
        self.saved: Orders = {}

    def load(self) -> Orders:
        return dict(self.saved)

    def save(self, orders: Orders) -> None:
        self.saved = dict(orders)


@dataclass
class Replica:
    """Holds the models it was asked to load, until it is ordered to unload them."""

    name: str
    loaded: set[str] = field(default_factory=set)
    orders: Orders = field(default_factory=dict)
    drains: int = 0  # questions answered before an unloaded model is really gone
    keys: tuple[str, ...] = ("a:1", "b:1")
    found: tuple[str, ...] = ()  # offered once it has looked for versions
    n_looks: int = 0
    hold: asyncio.Event | None = None  # answers are on their way until it is set
    is_frozen: bool = False
    is_dead: bool = False
    rejected: dict[str, str] = field(default_factory=dict)
    n_told: list[int] = field(default_factory=list)  # models of each answer
    revisions: Revisions = field(default_factory=Revisions)

    def discover(self) -> None:
        self.n_looks += 1
        self.keys += self.found
        self.found = ()

    def status(self, orders: Orders, known: Mapping[str, str]) -> PoolStatus:
        status = brief(self.revisions.mark(self._offer(orders)), known.get(self.name, ""))
        self.n_told.append(len(status.models))
        return status

    def _offer(self, orders: Orders) -> PoolStatus:
        self.orders = dict(orders)
        if self.drains:
            self.drains -= 1
        else:
            self.loaded -= {key for key, order in orders.items() if order.verb is Verb.UNLOAD}
        models = tuple(
            ModelStatus(
                key[0], "1", Task.TENSOR, Signature((), ()),
                ModelState.READY if key in self.loaded else ModelState.UNLOADED,
                False, 30.0, size_bytes=5 * (key in self.loaded), n_ready=int(key in self.loaded),
            )
            for key in self.keys
        )  # fmt: skip
        return PoolStatus(models, self.rejected, 1, replicas=(self.name,))


@dataclass
class Result:
    """One replica's part of a broadcast, as Ray has it."""

    replica: Replica
    method: str
    args: tuple[Any, ...]

    async def get_async(self) -> Any:
        if self.replica.is_frozen:
            await asyncio.Event().wait()
        if self.replica.is_dead:
            raise RuntimeError("the actor died")
        answer = getattr(self.replica, self.method)(*self.args)
        if self.replica.hold is not None:
            await self.replica.hold.wait()
        return answer


class Pool:
    """A Pool's handle: the first replica is the first in every model's order."""

    app_name = "p"

    def __init__(self, *names: str) -> None:
        self.replicas = [Replica(name) for name in names]
        self.error: ModelUnavailable | None = None
        self.loads: list[tuple[str, int]] = []

    def options(self, method_name: str, multiplexed_model_id: str) -> "Pool":
        assert method_name == "load"
        return self

    async def remote(self, key: str, copy: int) -> ModelUnavailable | None:
        self.loads.append((key, copy))
        if self.error is None:
            self.replicas[copy % len(self.replicas)].loaded.add(key)
        return self.error

    def broadcast(self, method: str, *args: Any) -> Any:
        pool = self

        class Response:
            async def _fetch_replica_results_async(self) -> list[Result]:
                return [Result(replica, method, args) for replica in pool.replicas]

        return Response()


class Case:
    def __init__(self, *replicas: str) -> None:
        self.pool, self.store = Pool(*replicas), Store()
        self.catalog = self.start()

    def start(self) -> Catalog:
        return Catalog(cast(DeploymentHandle, self.pool), self.store)


async def test_a_load_returns_when_the_model_is_in_memory_and_is_heard_by_all() -> None:
    case = Case("r1", "r2")
    await case.catalog.order(LOAD, ["a:1"])
    assert case.pool.loads == [("a:1", 0)]
    assert [replica.orders for replica in case.pool.replicas] == [{"a:1": LOAD}] * 2
    assert case.store.saved == {"a:1": LOAD}


async def test_a_load_that_fails_raises_and_the_order_stands() -> None:
    case = Case("r1")
    case.pool.error = ModelUnavailable("no", reason="no")
    with pytest.raises(ModelUnavailable):
        await case.catalog.order(LOAD, ["a:1"])
    assert case.store.saved == {"a:1": LOAD}


async def test_an_unload_returns_when_no_replica_holds_the_model_any_more() -> None:
    case = Case("r1", "r2")
    for replica in case.pool.replicas:
        replica.loaded, replica.drains = {"a:1", "b:1"}, 2
    await case.catalog.order(UNLOAD, ["a:1"])
    assert [replica.loaded for replica in case.pool.replicas] == [{"b:1"}] * 2


async def test_a_new_replica_hears_the_orders_and_loads_what_belongs_there() -> None:
    case = Case("r1")
    await case.catalog.order(LOAD, ["a:1"])
    await case.catalog.order(UNLOAD, ["b:1"])
    await case.catalog.status()
    await asyncio.sleep(0.01)
    case.pool.loads.clear()
    case.pool.replicas = [Replica("r2")]
    await case.catalog.status()
    await asyncio.sleep(0.01)
    assert case.pool.replicas[0].orders == {"a:1": LOAD, "b:1": UNLOAD}
    assert case.pool.loads == [("a:1", 0)]
    await case.catalog.status()
    assert case.pool.loads == [("a:1", 0)], "only when replicas change"


async def test_a_catalog_that_was_replaced_knows_the_orders() -> None:
    case = Case("r1")
    await case.catalog.order(UNLOAD, ["a:1"])
    await case.start().status()
    assert case.pool.replicas[0].orders == {"a:1": UNLOAD}


async def test_the_order_of_a_model_that_left_the_configuration_is_forgotten() -> None:
    case = Case("r1")
    case.store.saved = {"gone:1": UNLOAD, "a:1": UNLOAD}
    await case.catalog.status()
    assert case.store.saved == {"a:1": UNLOAD}


async def test_without_replicas_an_order_is_noted_and_refused() -> None:
    case = Case()
    with pytest.raises(PoolUnavailable, match="the order is noted"):
        await case.catalog.order(UNLOAD, ["a:1"])
    assert case.store.saved == {"a:1": UNLOAD}


async def test_ready_replicas_are_counted() -> None:
    case = Case("r1", "r2", "r3")
    await case.catalog.warm("a:1", 2)
    found = {model.name: model.n_ready for model in (await case.catalog.status()).models}
    assert found == {"a": 2, "b": 0}


async def test_a_refused_configuration_costs_no_order() -> None:
    case = Case("r1")
    case.store.saved = {"a:1": UNLOAD, "gone:1": UNLOAD}
    [replica] = case.pool.replicas
    replica.keys = ()
    replica.rejected = {"models": "expected a list"}
    await case.catalog.status()
    assert set(case.store.saved) == {"a:1", "gone:1"}


async def test_replicas_that_know_different_versions_look_again() -> None:
    pool = Pool("r1", "r2")
    older, newer = pool.replicas
    older.found, newer.keys = ("c:1",), ("a:1", "b:1", "c:1")
    catalog = Catalog(cast(DeploymentHandle, pool), Store())
    await catalog.status()
    assert older.keys == newer.keys
    older.keys = ("a:1",)  # it lacks the folder: looking again finds nothing
    for _ in range(5):
        await catalog.status()
    assert older.n_looks == 2


async def test_a_frozen_or_dead_replica_silences_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "_TIMEOUT_S", 0.05)
    case = Case("r1", "r2", "r3")
    case.pool.replicas[0].is_frozen = case.pool.replicas[1].is_dead = True
    case.pool.replicas[2].loaded = {"a:1"}
    status = await case.catalog.status()
    assert (status.n_replicas, status.n_silent, status.replicas) == (1, 1, ("r3",))
    assert {model.key: model.state for model in status.models}["a:1"] is ModelState.READY


async def test_models_that_have_not_changed_are_told_once() -> None:
    case = Case("r1", "r2")
    first = await case.catalog.status()
    again = await case.catalog.status(first.revision)
    assert (len(first.models), len(again.models), again.revision) == (2, 0, first.revision)
    assert complete(again, first).models == first.models
    assert [replica.n_told for replica in case.pool.replicas] == [[2, 0]] * 2

    await case.catalog.warm("a:1", 1)
    changed = await case.catalog.status(first.revision)
    assert [model.state for model in changed.models] == [ModelState.READY, ModelState.UNLOADED]
    assert [replica.n_told for replica in case.pool.replicas] == [[2, 0, 2], [2, 0, 0]]


async def test_a_catalog_that_was_replaced_tells_everything_again() -> None:
    case = Case("r1")
    known = (await case.catalog.status()).revision
    assert len((await case.start().status(known)).models) == 2


async def test_questions_at_once_do_not_mix_up_what_is_known() -> None:
    """An answer leaves out what was known when it was asked for, and arrives after a newer one."""
    case = Case("r1")
    await case.catalog.status()
    [replica] = case.pool.replicas
    replica.hold = held = asyncio.Event()
    late = asyncio.create_task(case.catalog.status())
    await asyncio.sleep(0.01)
    replica.hold = None
    await case.catalog.warm("a:1", 1)
    assert (await case.catalog.status()).models[0].state is ModelState.READY
    held.set()
    assert len((await late).models) == 2
