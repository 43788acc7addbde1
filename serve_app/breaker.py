"""Leaves a model alone that keeps failing: requests fail at once, or fall back, until one try succeeds.

    closed ─ too many failures ─▶ open ─ `open_s` later ─▶ trying: one request ─ it succeeds ─▶ closed
                                   ▲───── it fails: twice as long ──────┘

A layer of `gateway.py`; a circuit a model. A stream works once it has begun, and counts as failed instead if it breaks
later. What counts is what is the model's fault and not one caller's: a wrong
request, a deadline shorter than the model's own and a full queue count for nothing, and an input that the model fails
on counts only while it fails on everybody's.
"""

import math
from enum import Enum

from deployments.errors import (
    CircuitOpen,
    DeadlineExceeded,
    EngineFailure,
    ModelLoading,
    ModelUnavailable,
    PoolUnavailable,
    ServeError,
)
from deployments.types import MONOTONIC, Clock, InferResult, ModelStatus
from serve_app.config import EndpointConfig
from serve_app.policies import Answer, Work
from serve_app.traffic_config import Breaker
from serve_app.traffic_metrics import TrafficMetrics


class Verdict(Enum):
    """What the end of a request says of its model."""

    WORKS = "works"
    FAILS = "fails"
    FAILS_ON_INPUT = "fails_on_input"  # perhaps the input's own fault
    NOTHING = "nothing"


class State(Enum):
    """Where a circuit stands; the number is what the metric shows."""

    CLOSED = 0
    TRYING = 1
    OPEN = 2


class Circuit:
    """One model's circuit. What it counts fades: requests of `window_s` ago weigh a third."""

    def __init__(self, settings: Breaker, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._counted = clock()
        self._works = self._fails = self._fails_on_input = 0.0
        self._until = 0.0
        self._open_s = settings.open_s
        self.state = State.CLOSED

    def enter(self) -> float | None:
        """Ask to pass: None lets the request through, otherwise the seconds after which to ask again."""
        if self.state is State.CLOSED:
            return None
        now = self._clock()
        if self.state is State.OPEN and now >= self._until:
            self.state = State.TRYING
            return None
        return max(self._until - now, self._settings.open_s)

    def ended(self, verdict: Verdict, *, is_try: bool) -> None:
        """Count the end of a request that was let through; `is_try` if it was the one that tried."""
        if is_try:
            self._tried(verdict)
        elif self.state is State.CLOSED and verdict is not Verdict.NOTHING:
            self._count(verdict)

    def broke(self, verdict: Verdict) -> None:
        """Count the end of a stream that had begun well, and counted so."""
        if self.state is State.CLOSED and verdict is not Verdict.NOTHING:
            self._works = max(self._works - 1.0, 0.0)
            self._count(verdict)

    def _tried(self, verdict: Verdict) -> None:
        match verdict:
            case Verdict.WORKS:
                self.state = State.CLOSED
                self._works = self._fails = self._fails_on_input = 0.0
            case Verdict.NOTHING:
                self.state = State.OPEN  # the next one may try at once
            case Verdict.FAILS_ON_INPUT:
                self._open(self._open_s)
            case Verdict.FAILS:
                self._open(min(self._open_s * 2, self._settings.max_open_s))

    def _count(self, verdict: Verdict) -> None:
        now = self._clock()
        kept = math.exp((self._counted - now) / self._settings.window_s)
        self._counted = now
        self._works = self._works * kept + (verdict is Verdict.WORKS)
        self._fails = self._fails * kept + (verdict is Verdict.FAILS)
        self._fails_on_input = self._fails_on_input * kept + (verdict is Verdict.FAILS_ON_INPUT)
        if (self._fails or self._fails_on_input) and self._is_over():
            self._open(self._settings.open_s)

    def _is_over(self) -> bool:
        works, fails, on_input = self._works, self._fails, self._fails_on_input
        enough = self._settings.min_requests - 0.5  # counts fade a little even between two requests
        if works + fails >= enough and fails >= self._settings.failure_rate * (works + fails):
            return True
        return works < 0.5 and fails + on_input >= enough

    def _open(self, seconds: float) -> None:
        self.state = State.OPEN
        self._open_s = seconds
        self._until = self._clock() + seconds


class Breakers:
    """The circuits of all models."""

    def __init__(self, metrics: TrafficMetrics, clock: Clock = MONOTONIC) -> None:
        self._metrics = metrics
        self._clock = clock
        self._config = EndpointConfig()
        self._circuits: dict[str, Circuit] = {}

    def configure(self, config: EndpointConfig) -> None:
        """Take the settings; circuits keep their state unless the settings changed."""
        if config.breaker != self._config.breaker:
            self._circuits.clear()
            self._metrics.breakers_closed()
        self._config = config

    async def answer(self, work: Work, compute: Answer) -> InferResult:
        """Let a request through to a model that works.

        Raises:
            CircuitOpen: the model is left alone for `retry_after_s`.
        """
        settings = self._config.breaker
        if settings is None:
            return await compute(work)
        model = work.plan.primary
        circuit = self._circuits.get(model.key)
        if circuit is None:
            circuit = self._circuits[model.key] = Circuit(settings, self._clock)
        wait_s = circuit.enter()
        if wait_s is not None:
            raise CircuitOpen(f"model {model.key!r} keeps failing and is left alone for now", retry_after_s=wait_s)
        is_try, given_s = circuit.state is State.TRYING, work.deadline - self._clock()
        verdict = Verdict.NOTHING
        try:
            result = await compute(work)
            verdict = Verdict.WORKS
        except ServeError as exc:
            verdict = judge(exc, is_patient=self._is_patient(work, given_s))
            raise
        finally:
            before = State.TRYING if is_try else circuit.state
            circuit.ended(verdict, is_try=is_try)
            if circuit.state is not before:
                self._metrics.breaker(model, circuit.state.value, is_opened=circuit.state is State.OPEN)
        return result

    def broke(self, model: ModelStatus, exc: ServeError) -> None:
        """Count an answer that ended in an error after it had begun; a long one that met its deadline is no fault."""
        circuit = self._circuits.get(model.key)
        if circuit is None:
            return
        before = circuit.state
        circuit.broke(judge(exc, is_patient=False))
        if circuit.state is not before:
            self._metrics.breaker(model, circuit.state.value, is_opened=True)

    def _is_patient(self, work: Work, given_s: float) -> bool:
        """Return whether the request gave its model all the time that the operator does."""
        limits = [work.plan.primary.timeout_s, self._config.max_timeout_s]
        if work.plan.fallback is not None and work.plan.fallback.after_s is not None:
            limits.append(work.plan.fallback.after_s)
        return given_s >= 0.9 * min(limits)


def judge(exc: ServeError, *, is_patient: bool) -> Verdict:
    """Return what an error says of the model."""
    match exc:
        case EngineFailure():
            return Verdict.FAILS_ON_INPUT
        case ModelLoading():
            return Verdict.NOTHING
        case DeadlineExceeded():
            return Verdict.FAILS if is_patient else Verdict.NOTHING
        case ModelUnavailable() | PoolUnavailable():
            return Verdict.FAILS
        case _:
            return Verdict.FAILS if exc.status == 500 else Verdict.NOTHING
