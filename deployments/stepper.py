"""The loop that drives one generating engine, step after step, and hands every stream what became ready for it.

    stream ──▶ joining ──step──▶ in the engine (waiting, running) ──▶ last delta
       └─ left, expired ──▶ leaving ──step──▶ its cache is free

One step computes one token for all that run, holding the device's turn; joining and leaving take effect at the next.
A stream whose reader is slow finds all its tokens merged into one delta: no step waits for a reader, and what waits
for one is at most what its request may generate. Pure asyncio; made by `deployments.loader`, one a loaded model.
"""

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from deployments.errors import DeadlineExceeded, EngineFailure, InputTooLong, Overloaded, ServeError
from deployments.generation import Delta, Job, StepReport
from deployments.spec import BatchLimits
from deployments.turns import Turn
from deployments.types import MONOTONIC, Clock

logger = logging.getLogger(__name__)

RunStep: TypeAlias = Callable[[Sequence[Job], Sequence[Job]], Awaitable[StepReport]]
_SMOOTHING = 0.1  # weight of the newest step, or the newest finished job, in the running estimates
_IDLE = StepReport(())


@dataclass(eq=False, slots=True)
class _Stream:
    """One request's jobs that are not over, and what its reader has not taken yet."""

    jobs: set[Job]
    deadline: float
    ready: dict[Job, Delta] = field(default_factory=dict)
    error: ServeError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Stepper:
    """Generates for many streams at once. `limits.max_items` run together, `limits.max_queue_items` may wait."""

    def __init__(
        self,
        step: RunStep,
        limits: BatchLimits,
        device: Turn,
        clock: Clock = MONOTONIC,
        observe: Callable[[StepReport, float], None] = lambda _, __: None,
    ) -> None:
        self._step = step
        self.limits = limits
        self.device = device
        self._clock = clock
        self._observe = observe
        self._open: dict[Job, _Stream] = {}
        self._joining: list[Job] = []
        self._leaving: list[Job] = []
        self._report = _IDLE
        self._task: asyncio.Task[None] | None = None
        self._step_s = 0.0
        self._tokens_per_job = 0.0
        self._n_tokens: dict[Job, int] = {}

    @property
    def n_waiting(self) -> int:
        """Sequences that do not run yet."""
        return len(self._joining) + self._report.n_waiting

    @property
    def n_running(self) -> int:
        """Sequences whose next token the next step computes."""
        return self._report.n_running

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys and values are kept."""
        return self._report.cache_tokens

    @property
    def waiting_s(self) -> float:
        """Predicted seconds until all that is here now is done; 0.0 before anything has been timed."""
        turns = len(self._open) / min(max(len(self._open), 1), self.limits.max_items)
        return turns * self._tokens_per_job * self._step_s

    async def stream(self, jobs: Sequence[Job], deadline: float) -> AsyncGenerator[list[Delta], None]:
        """Yield what became ready of one request's jobs, merged by job, until all of them are over.

        Close it (`contextlib.aclosing`) to leave early: the jobs are gone with the next step.

        Raises:
            InputTooLong: more jobs than may ever wait.
            Overloaded: too many wait now.
            DeadlineExceeded: it took too long.
            ServeError: one of the jobs failed.
        """
        self._check_room(len(jobs))
        stream = _Stream(set(jobs), deadline)
        for job in jobs:
            self._open[job] = stream
        self._joining += jobs
        if self._task is None:
            # NOTE: an empty context, or the steps of all would run as part of the request that came first.
            self._task = asyncio.get_running_loop().create_task(self._drive(), context=contextvars.Context())
        try:
            while stream.jobs or stream.ready or stream.error:
                if not stream.ready and stream.error is None:
                    stream.changed.clear()
                    await stream.changed.wait()
                if stream.error is not None:
                    raise stream.error
                ready, stream.ready = list(stream.ready.values()), {}
                yield ready
        finally:
            self._withdraw(stream)

    def _check_room(self, n_jobs: int) -> None:
        limit = self.limits.max_queue_items
        if n_jobs > limit:
            message = f"a request may ask for {limit} sequences, this one asks for {n_jobs}; split it"
            raise InputTooLong(message, max_items=limit, n_items=n_jobs)
        if self.n_waiting + n_jobs > limit:
            wait = round(max(self.waiting_s, 0.05), 3)
            raise Overloaded(f"{self.n_waiting} sequences are waiting and {limit} may", retry_after_s=wait)

    def _withdraw(self, stream: _Stream) -> None:
        """Take a stream's unfinished jobs out: at once those the engine has not seen, the others with the next step."""
        for job in stream.jobs:
            self._open.pop(job, None)
            self._n_tokens.pop(job, None)
            if job in self._joining:
                self._joining.remove(job)
            else:
                self._leaving.append(job)
        stream.jobs.clear()

    async def _drive(self) -> None:
        error = EngineFailure("generation stopped")
        try:
            while self._open or self._leaving:
                async with self.device:
                    self._expire()
                    joining, self._joining = self._joining, []
                    leaving, self._leaving = self._leaving, []
                    await self._run(joining, leaving)
                await asyncio.sleep(0)  # let readers take what is ready, also where a step never waits
        finally:
            self._task, self._report = None, _IDLE
            for stream in set(self._open.values()):  # only if this task itself was cancelled or broke
                self._fail(stream, error)

    async def _run(self, joining: list[Job], leaving: list[Job]) -> None:
        started = self._clock()
        try:
            report = await self._step(joining, leaving)
        except Exception as exc:
            logger.exception("a generation step raised")
            reason = f"{type(exc).__name__}: {exc}"[:300]
            for stream in set(self._open.values()):
                self._fail(stream, EngineFailure(f"the model failed: {reason}", reason=reason))
            return
        step_s = self._clock() - started
        self._report = report
        if report.new_tokens:
            self._step_s += (step_s - self._step_s) * (_SMOOTHING if self._step_s else 1.0)
        self._observe(report, step_s)
        for delta in report.deltas:
            if (owner := self._open.get(delta.job)) is not None:
                self._hand_over(owner, delta)

    def _hand_over(self, stream: _Stream, delta: Delta) -> None:
        job = delta.job
        self._n_tokens[job] = self._n_tokens.get(job, 0) + delta.n_tokens
        if delta.is_last:
            stream.jobs.discard(job)
            del self._open[job]
            n_tokens = self._n_tokens.pop(job)
            self._tokens_per_job += (n_tokens - self._tokens_per_job) * (_SMOOTHING if self._tokens_per_job else 1.0)
        if delta.error is not None:
            self._fail(stream, delta.error)
            return
        earlier = stream.ready.get(job)
        stream.ready[job] = delta if earlier is None else _merged(earlier, delta)
        stream.changed.set()

    def _expire(self) -> None:
        now = self._clock()
        for stream in {s for s in self._open.values() if s.deadline <= now}:
            self._fail(stream, DeadlineExceeded("the deadline passed while the text was generated"))

    def _fail(self, stream: _Stream, error: ServeError) -> None:
        stream.error = error
        self._withdraw(stream)
        stream.changed.set()


def _merged(first: Delta, second: Delta) -> Delta:
    return replace(
        second,
        text=first.text + second.text,
        n_tokens=first.n_tokens + second.n_tokens,
        logprobs=first.logprobs + second.logprobs,
    )
