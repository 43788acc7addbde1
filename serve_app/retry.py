"""Sends a request again where no replica could be reached, within its deadline and within a budget.

A layer of `gateway.py`. Only such requests: nothing has run, or an inference is lost with its replica, which changes
nothing outside. What a model refused, failed on or had no room for is not sent again: that only adds to the load.
"""

import asyncio
import random
from collections.abc import Callable

from deployments.errors import PoolUnavailable
from deployments.types import MONOTONIC, Clock, InferResult
from serve_app.config import EndpointConfig
from serve_app.policies import Answer, Work
from serve_app.traffic_config import Retries
from serve_app.traffic_metrics import TrafficMetrics

_MAX_SAVED = 10.0  # retries that quiet times may save up


class Retry:
    """Repeats within a budget: each request earns a share of a retry, each retry costs one."""

    def __init__(
        self, metrics: TrafficMetrics, clock: Clock = MONOTONIC, draw: Callable[[], float] = random.random
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._draw = draw
        self._settings: Retries | None = None
        self._saved = _MAX_SAVED

    def configure(self, config: EndpointConfig) -> None:
        """Take the settings."""
        self._settings = config.retries

    async def answer(self, work: Work, compute: Answer) -> InferResult:
        """Return the answer of the first sending that reaches a replica. Raises ServeError."""
        settings = self._settings
        if settings is None:
            return await compute(work)
        self._saved = min(self._saved + settings.budget, _MAX_SAVED)
        for attempt in range(1, settings.max_attempts):
            try:
                return await compute(work)
            except PoolUnavailable:
                pause = settings.backoff_s * 2 ** (attempt - 1) * self._draw()
                if self._saved < 1 or self._clock() + pause >= work.deadline:
                    raise
                self._saved -= 1
            self._metrics.retry(work.plan.primary)
            await asyncio.sleep(pause)
        return await compute(work)
