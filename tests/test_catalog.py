"""Catalog: orders reach every replica, new ones too, outlive the process, and are answered when they are done."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from ray.serve.handle import DeploymentHandle

from deployments import catalog as catalog_module
from deployments.catalog import Catalog
from deployments.errors import ModelUnavailable, PoolUnavailable
from deployments.orders import LOAD, UNLOAD, Orders, Verb
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
    is_frozen: bool = False
    is_dead: bool = False

    def discover(self) -> None:
        self.n_looks += 1
        self.keys += self.found
        self.found = ()

    def status(self, orders: Orders) -> PoolStatus:
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
        return PoolStatus(models, {}, 1, replicas=(self.name,))


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
        return getattr(self.replica, self.method)(*self.args)


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
    usual = replica.status
    replica.status = lambda orders: PoolStatus((), {"models": "expected a list"}, usual(orders).n_replicas)  # type: ignore[method-assign]
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
