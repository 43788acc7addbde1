"""The `Catalog` deployment: root of a pool application; through it the ingress asks and commands all replicas.

Orders (`load`, `unload` over the API) are held here and sent along with every question: so a new replica learns them
with the first one, within a second, and a catalog that was replaced finds them in its store.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.broadcast import Answers, ask_all
from deployments.errors import PoolUnavailable, ServeError
from deployments.gcs_store import GcsStore
from deployments.metrics import ReplicaMetrics
from deployments.orders import Order, Store, Verb
from deployments.revisions import Revisions, brief, complete
from deployments.statistics import ModelStatistics, merged
from deployments.types import ModelState, ModelStatus, PoolStatus

logger = logging.getLogger(__name__)
_TIMEOUT_S = 1.0
# A model is as far as its furthest replica: the router may send requests there.
_PROGRESS = (
    ModelState.READY,
    ModelState.LOADING,
    ModelState.PARKED,
    ModelState.UNLOADED,
    ModelState.UNLOADING,
    ModelState.UNAVAILABLE,
)


class Catalog:
    """Speaks for all replicas of one pool."""

    # NOTE: Serve treats the root of an application as an ingress: no __call__ here, and no method named as an rpc.

    def __init__(self, pool: DeploymentHandle, store: Store | None = None) -> None:
        self._pool = pool
        self._store = store or GcsStore(pool.app_name)
        self._orders: dict[str, Order] | None = None  # None until the store has been read
        self._replicas: frozenset[str] = frozenset()
        self._offers: frozenset[frozenset[str]] = frozenset()  # what replicas offered when last asked
        self._warming: set[asyncio.Task[None]] = set()
        self._told: dict[str, PoolStatus] = {}  # by each replica when last asked
        self._revisions = Revisions()

    async def status(self, known: str = "") -> PoolStatus:
        """Return what the pool offers, merged over its replicas; nothing while it has none.

        Without the models if they are still those of revision `known`.
        """
        orders = await self._read()
        answers = await self._statuses(orders)
        await self._agree(answers.given)
        status = self._revisions.mark(replace(merge(answers.given), n_silent=answers.n_silent))
        if orders and status.n_replicas:
            await self._keep_up(status, orders)
        return brief(status, known)

    async def discover(self) -> None:
        """Have every replica look again for versions in the folders of models."""
        await self._ask("discover")

    async def _agree(self, answers: Sequence[PoolStatus]) -> None:
        """Have replicas look again where they offer different models: one that is new may have found versions.

        Once for each difference: it may also be that a node lacks a folder.
        """
        offers = frozenset(frozenset(model.key for model in one.models if not model.is_leaving) for one in answers)
        if len(offers) > 1 and offers != self._offers:
            await self.discover()
        self._offers = offers

    async def order(self, order: Order, keys: Sequence[str]) -> None:
        """Load or unload models, and hold every replica to it from now on; returns when it is done.

        Raises:
            ServeError: a model cannot be loaded; the order stands all the same.
        """
        orders = await self._read()
        orders.update(dict.fromkeys(keys, order))
        await self._save(orders)
        if not (answers := (await self._statuses(orders)).given):
            raise PoolUnavailable("the order is noted, but the pool has no replica that answers", retry_after_s=1.0)
        if order.verb is Verb.LOAD:
            await asyncio.gather(*(self.warm(key, 1) for key in keys))
        else:
            await self._until_gone(frozenset(keys), answers, orders)

    async def warm(self, key: str, n_copies: int) -> None:
        """Have a model in memory on the first `n_copies` of its replicas. Raises ServeError."""
        # NOTE: the router finds a model's replicas by its multiplexed_model_id and the copy, as for requests.
        method = self._pool.options(method_name="load", multiplexed_model_id=key)
        outcomes = await asyncio.gather(*(method.remote(key, copy=copy) for copy in range(n_copies)))
        for error in outcomes:
            if isinstance(error, ServeError):
                raise error

    async def _until_gone(
        self, keys: frozenset[str], answers: Sequence[PoolStatus], orders: Mapping[str, Order]
    ) -> None:
        """Wait until no replica holds any of these models: requests on board are answered first."""
        while any(model.key in keys and model.size_bytes for status in answers for model in status.models):
            await asyncio.sleep(0.05)
            answers = (await self._statuses(orders)).given

    async def _keep_up(self, status: PoolStatus, orders: dict[str, Order]) -> None:
        """After replicas came or went: load what was ordered where it belongs now; forget models that are no more."""
        offered = {model.key for model in status.models}
        # NOTE: a refused configuration says nothing of which models there are to be.
        if (gone := orders.keys() - offered) and not status.rejected:
            for key in gone:
                del orders[key]
            await self._save(orders)
        if self._replicas != (now := frozenset(status.replicas)):
            self._replicas = now
            for key in [key for key, order in orders.items() if order.verb is Verb.LOAD]:
                task = asyncio.create_task(self._warm_again(key))
                self._warming.add(task)
                task.add_done_callback(self._warming.discard)

    async def _warm_again(self, key: str) -> None:
        try:
            await self.warm(key, 1)
        except Exception:
            logger.exception("model %s was ordered to be in memory, and could not be loaded", key)

    async def _read(self) -> dict[str, Order]:
        if self._orders is None:
            saved = await asyncio.to_thread(self._store.load)
            if self._orders is None:  # nobody was faster
                self._orders = dict(saved)
        return self._orders

    async def _save(self, orders: dict[str, Order]) -> None:
        await asyncio.to_thread(self._store.save, dict(orders))

    async def metrics(self) -> list[ReplicaMetrics]:
        """Return the metrics of every replica that answers in time."""
        return await self._ask("metrics")

    async def statistics(self) -> dict[str, ModelStatistics]:
        """Return what all replicas have counted, by `name:version`."""
        return merged(await self._ask("statistics"))

    async def _statuses(self, orders: Mapping[str, Order]) -> Answers:
        """Ask every replica what it offers."""
        told = self._told  # as it is now: another question may be answered before this one
        known = {replica: status.revision for replica, status in told.items()}
        answers = await self._ask_all("status", orders, known)
        given = [complete(one, told.get(one.replicas[0])) for one in answers.given]
        self._told = {one.replicas[0]: one for one in given}
        return replace(answers, given=given)

    async def _ask(self, method: str, *args: Any) -> list[Any]:
        return (await self._ask_all(method, *args)).given

    async def _ask_all(self, method: str, *args: Any) -> Answers:
        try:
            return await ask_all(self._pool, method, *args, timeout_s=_TIMEOUT_S)
        except (TimeoutError, DeploymentUnavailableError):
            return Answers([])


def merge(statuses: Sequence[PoolStatus]) -> PoolStatus:
    """Merge what replicas say: each model in its furthest state, each refused entry once."""
    models: dict[str, ModelStatus] = {}
    n_ready: dict[str, int] = {}
    rejected: dict[str, str] = {}
    for status in statuses:
        rejected.update(status.rejected)
        for model in status.models:
            n_ready[model.key] = n_ready.get(model.key, 0) + model.n_ready
            best = models.get(model.key)
            if best is None or _PROGRESS.index(model.state) < _PROGRESS.index(best.state):
                models[model.key] = model
    return PoolStatus(
        # As they are where nothing is to be added up: of a thousand models few are in memory anywhere.
        models=tuple(
            model if model.n_ready == n_ready[key] else replace(model, n_ready=n_ready[key])
            for key, model in models.items()
        ),
        rejected=rejected,
        n_replicas=len(statuses),
        resident_bytes=sum(s.resident_bytes for s in statuses),
        budget_bytes=sum(s.budget_bytes for s in statuses),
        parked_bytes=sum(s.parked_bytes for s in statuses),
        ram_bytes=sum(s.ram_bytes for s in statuses),
        replicas=tuple(replica for s in statuses for replica in s.replicas),
    )
