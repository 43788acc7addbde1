"""Shadow traffic: another model is asked the same, and only its answers' difference from the client's is kept.

The `Observer` of `gateway.py`, after the answer: a shadow delays nobody, its failures are counted and forgotten, it
waits behind all others' work, and beyond `MAX_REQUESTS` under way shadows are dropped.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias

from deployments.errors import ServeError
from deployments.types import MONOTONIC, Clock, InferRequest, InferResult, ModelStatus
from serve_app.comparison import difference
from serve_app.config import EndpointConfig
from serve_app.policies import Work
from serve_app.protocols.types import Models
from serve_app.traffic_config import Shadow
from serve_app.traffic_metrics import TrafficMetrics

logger = logging.getLogger(__name__)

MAX_REQUESTS = 32  # shadows under way in an ingress replica: each holds a request and its answer
MAX_BYTES = 64 * 2**20  # of these requests
LAST = -1000  # their priority
Ask: TypeAlias = Callable[[ModelStatus, InferRequest, float], Awaitable[InferResult]]


class Shadows:
    """Asks shadows and compares. `ask` is the forwarder."""

    def __init__(self, models: Models, ask: Ask, metrics: TrafficMetrics, clock: Clock = MONOTONIC) -> None:
        self._models = models
        self._ask = ask
        self._metrics = metrics
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._n_bytes = 0

    def configure(self, config: EndpointConfig) -> None:
        """Nothing of its own: the plan brings the shadows of each request."""

    def answered(self, work: Work, result: InferResult) -> None:
        """Ask the shadows of one answered request; returns at once."""
        for shadow in work.plan.shadows:
            if len(self._tasks) >= MAX_REQUESTS or self._n_bytes + work.request.size_bytes > MAX_BYTES:
                self._metrics.shadow(work.plan.asked, shadow.model, "dropped")
                continue
            # An empty context: a shadow must not end with the client's request.
            task = asyncio.get_running_loop().create_task(
                self._compare(work, shadow, result), context=contextvars.Context()
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Forget the shadows under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compare(self, work: Work, shadow: Shadow, result: InferResult) -> None:
        n_bytes = work.request.size_bytes
        self._n_bytes += n_bytes
        try:
            await self._ask_and_compare(work, shadow, result)
        finally:
            self._n_bytes -= n_bytes

    async def _ask_and_compare(self, work: Work, shadow: Shadow, result: InferResult) -> None:
        alias, started = work.plan.asked, self._clock()
        try:
            model = self._models.resolve(shadow.model)
            request = replace(work.request, priority=LAST, timeout_s=None)
            other = await self._ask(model, request, started + model.timeout_s)
        except ServeError as exc:
            self._metrics.shadow(alias, shadow.model, exc.code)
            return
        except Exception:
            logger.exception("shadow %s of %s failed", shadow.model, alias)
            self._metrics.shadow(alias, shadow.model, "internal")
            return
        found = difference(model.task, shadow.compare, result.outputs, other.outputs)
        verdict = "agree" if found <= shadow.tolerance else "differ"
        self._metrics.shadow(alias, shadow.model, verdict, self._clock() - started)
        self._metrics.difference(alias, shadow.model, found)
