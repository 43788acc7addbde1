"""The `Catalog` deployment: root of a pool application, and what the ingress asks about the pool as a whole."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.metrics import ReplicaMetrics
from deployments.statistics import ModelStatistics, merged
from deployments.types import ModelState, ModelStatus, PoolStatus

_TIMEOUT_S = 1.0
# A model is as far as its furthest replica: the router may send requests there.
_PROGRESS = (
    ModelState.READY,
    ModelState.LOADING,
    ModelState.UNLOADED,
    ModelState.UNLOADING,
    ModelState.UNAVAILABLE,
)


class Catalog:
    """Speaks for all replicas of one pool."""

    # NOTE: Serve treats the root of an application as an ingress: no __call__ here, and no method named as an rpc.

    def __init__(self, pool: DeploymentHandle) -> None:
        self._pool = pool

    async def status(self) -> PoolStatus:
        """Return what the pool offers, merged over its replicas; nothing while it has none."""
        return merge(await self._ask("status"))

    async def metrics(self) -> list[ReplicaMetrics]:
        """Return the metrics of every replica that answers in time."""
        return await self._ask("metrics")

    async def statistics(self) -> dict[str, ModelStatistics]:
        """Return what all replicas have counted, by `name:version`."""
        return merged(await self._ask("statistics"))

    async def _ask(self, method: str) -> list[Any]:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answers = await self._pool.broadcast(method).results_async(return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError):
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def merge(statuses: Sequence[PoolStatus]) -> PoolStatus:
    """Merge what replicas say: each model in its furthest state, each refused entry once."""
    models: dict[str, ModelStatus] = {}
    rejected: dict[str, str] = {}
    for status in statuses:
        rejected.update(status.rejected)
        for model in status.models:
            best = models.get(model.key)
            if best is None or _PROGRESS.index(model.state) < _PROGRESS.index(best.state):
                models[model.key] = model
    return PoolStatus(
        models=tuple(models.values()),
        rejected=rejected,
        n_replicas=len(statuses),
        resident_bytes=sum(s.resident_bytes for s in statuses),
        budget_bytes=sum(s.budget_bytes for s in statuses),
    )
