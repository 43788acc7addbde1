"""What the ingress asks of its pools beside inference: what they offer, what they counted, and orders to them.

Made by `ingress.py`, which calls `refresh`; the rest is called by `gateway.py` as its `Pools`.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress

from deployments.errors import ServeError
from deployments.statistics import ModelStatistics
from serve_app.handles import PoolHandles, sibling_metrics
from serve_app.protocols.types import Command
from serve_app.registry import Registry
from serve_app.telemetry import render

logger = logging.getLogger(__name__)


class PoolControl:
    """Speaks to every pool of a registry through its catalog."""

    def __init__(self, registry: Registry, handles: PoolHandles) -> None:
        self._registry = registry
        self._handles = handles

    async def refresh(self, pool: str) -> None:
        """Tell the registry what a pool offers now, or why it cannot be told; never raises."""
        try:
            self._registry.update(pool, await self._handles.status(pool))
        except ServeError as exc:
            self._registry.update(pool, None, exc.message)
        except Exception:
            logger.exception("pool %s could not be asked", pool)
            self._registry.update(pool, None, "it could not be asked")

    async def command(self, command: Command) -> None:
        """Send each pool its part of a command, then look what has become of it. Raises ServeError."""
        models = command.models
        if command.look_again is not None:
            await self._discover({self._registry.target(model).pool for model in models} or self._registry.pools)
            models = command.look_again()
        keys: dict[str, list[str]] = {}
        for model in models:
            keys.setdefault(self._registry.target(model).pool, []).append(model.key)
        try:
            await asyncio.gather(*(self._handles.order(pool, command.order, keys[pool]) for pool in keys))
        finally:
            await asyncio.gather(*(self.refresh(pool) for pool in keys))

    async def _discover(self, pools: Iterable[str]) -> None:
        async def one(pool: str) -> None:
            with suppress(ServeError):  # the order to it tells
                await self._handles.discover(pool)
            await self.refresh(pool)

        await asyncio.gather(*map(one, pools))

    async def statistics(self) -> Mapping[str, ModelStatistics]:
        """Return what the pools have counted, by `name:version`; without those that do not answer in time."""
        parts = await asyncio.gather(*(self._handles.statistics(pool) for pool in self._registry.pools))
        return {key: counted for part in parts for key, counted in part.items()}

    async def metrics(self) -> bytes:
        """Return the metrics of all replicas of endpoint and pools in Prometheus' text format."""
        replicas = [self._handles.metrics(pool) for pool in self._registry.pools]
        parts = await asyncio.gather(sibling_metrics(), *replicas)
        return render(replica for part in parts for replica in part)
