"""How much of this ingress replica one model may take, and who is turned away when more comes.

A layer of `gateway.py`, which also asks it for a place for each stream. A model has at most `max_requests` here at
once; a request that would wait longer than its own deadline is turned away at once instead of after it. `Retry-After`
is what waits divided by how fast it is worked off, measured while the model is busy: throughput says nothing of
capacity while nobody waits. Who left, was late or was refused further on has not been worked off.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.errors import Overloaded, ServeError
from deployments.types import MONOTONIC, Clock, InferResult
from serve_app.config import EndpointConfig
from serve_app.policies import Answer, Work
from serve_app.traffic_config import Bulkhead
from serve_app.traffic_metrics import TrafficMetrics

BUSY = 16  # requests of a model at once from which on its throughput is what it can do
_FADE_S = 4.0  # answers of that long ago weigh a third
_SPAN_S = 1.0  # busy time before a rate means anything, and
_FEW = 8  # answers: they come a batch at a time, and the first of the first batch says nothing of the rest
_UNKNOWN_S = 1.0  # Retry-After while nothing is measured
_LONGEST_S = 60.0
_LOW, _HIGH = 0.8, 1.1


class Compartment:
    """One model's requests in flight, and how fast they are answered while it is busy."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._busy_since: float | None = None
        self._answered = 0.0  # requests since then, fading
        self._answered_at = 0.0
        self._n_answered = 0  # since then, all of them
        self.n_requests = 0

    @property
    def wait_s(self) -> float | None:
        """Seconds until what is here now is done; None while it is not known."""
        if self._busy_since is None or self._n_answered < _FEW:
            return None
        now = self._clock()
        busy_s = now - self._busy_since
        if busy_s < _SPAN_S:
            return None
        per_s = self._faded(now) / (_FADE_S * (1 - math.exp(-busy_s / _FADE_S)))
        return self.n_requests / per_s

    def enter(self) -> None:
        """Take a place."""
        self.n_requests += 1
        if self._busy_since is None and self.n_requests >= BUSY:
            self._busy_since = self._answered_at = self._clock()
            self._answered, self._n_answered = 0.0, 0

    def leave(self, *, is_answered: bool) -> None:
        """Give a place back."""
        self.n_requests -= 1
        if self.n_requests < BUSY // 2:
            self._busy_since = None
        elif is_answered and self._busy_since is not None:
            now = self._clock()
            self._answered, self._answered_at = self._faded(now) + 1, now
            self._n_answered += 1

    def _faded(self, now: float) -> float:
        return self._answered * math.exp((self._answered_at - now) / _FADE_S)


class Bulkheads:
    """One compartment a model."""

    def __init__(self, metrics: TrafficMetrics, clock: Clock = MONOTONIC, awake: Clock = MONOTONIC) -> None:
        self._metrics = metrics
        self._clock = clock  # of deadlines
        self._awake = awake  # of how fast models answer
        self._settings: Bulkhead | None = None
        self._compartments: dict[str, Compartment] = {}

    def configure(self, config: EndpointConfig) -> None:
        """Take the settings; requests already here stay."""
        self._settings = config.bulkhead

    async def answer(self, work: Work, compute: Answer) -> InferResult:
        """Let a request through if there is room and time for it. Raises Overloaded."""
        if self._settings is None:
            return await compute(work)
        key = work.plan.primary.key
        here, is_answered = self._enter(key, work, self._settings), False
        try:
            result = await compute(work)
            is_answered = True
        except ServeError as exc:
            is_answered = not exc.retryable  # what was wrong with it took its time as well
            raise
        finally:
            self._leave(key, here, is_answered=is_answered)
        return result

    @contextmanager
    def hold(self, work: Work) -> Iterator[None]:
        """Hold a place for a stream.

        Raises:
            Overloaded: there is no room, or no time; `retry_after_s` says when there will be.
        """
        if self._settings is None:
            yield
            return
        key = work.plan.primary.key
        here, is_answered = self._enter(key, work, self._settings), False
        try:
            yield
            is_answered = True
        finally:
            self._leave(key, here, is_answered=is_answered)

    def _enter(self, key: str, work: Work, settings: Bulkhead) -> Compartment:
        here = self._compartments.get(key)
        if here is None:
            here = self._compartments[key] = Compartment(self._awake)
        self._check(here, work, settings)
        here.enter()
        return here

    def _leave(self, key: str, here: Compartment, *, is_answered: bool) -> None:
        here.leave(is_answered=is_answered)
        if not here.n_requests:
            self._compartments.pop(key, None)

    def _check(self, here: Compartment, work: Work, settings: Bulkhead) -> None:
        wait_s = here.wait_s
        if here.n_requests >= settings.max_requests * _share(work.request.priority):
            reason, why = "full", f"{here.n_requests} requests are waiting for model {work.plan.primary.key!r}"
        elif wait_s is not None and wait_s > work.deadline - self._clock():
            reason, why = "late", f"model {work.plan.primary.key!r} would answer in {wait_s:.3g} s, after the deadline"
        else:
            return
        self._metrics.shed(work.plan.primary, reason)
        raise Overloaded(why, retry_after_s=min(wait_s or _UNKNOWN_S, _LONGEST_S))


def _share(priority: int) -> float:
    """Return how much of the places a priority may fill, so that the lowest is turned away first."""
    return 1.0 if not priority else _HIGH if priority > 0 else _LOW
