"""The sequences an engine generates together: who waits, who starts, who runs; one token each a step.

    waiting ──admit──▶ starting ──prompt computed, by pieces──▶ running ──▶ gone (finished, left, failed)
       ▲                   └──────────── preempted ◀───────────────┘

Rows of the cache are running ones first, then starting ones. They join while the cache has room for them (blocks of
tokens, not a count), and when running rows have grown out of it the youngest goes back to waiting and is computed again
later, its text and random numbers kept. Used by the generating engines in the device thread; a `Core` runs the model.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from deployments.chunks import Finish, TokenLogprob
from deployments.engines.sampling import Choice, Chooser, choose
from deployments.engines.spelling import Spelled, Speller
from deployments.errors import EngineFailure, ServeError
from deployments.generation import Delta, Job, StepReport

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Row:
    """One sequence under way. All but the newest of its tokens are in the cache once it runs."""

    job: Job
    chooser: Chooser
    speller: Speller
    new: list[int] = field(default_factory=list)
    n_cached: int = 0

    @property
    def ids(self) -> list[int]:
        """Prompt and generated tokens."""
        return [*self.job.prompt, *self.new]

    @property
    def length(self) -> int:
        """How many they are."""
        return len(self.job.prompt) + len(self.new)


class Core(Protocol):
    """Runs the model for a batch. Row i of the batch is row i of the cache."""

    joins_late: bool  # whether rows may join while others run

    def fits(self, n_rows: int, width: int) -> bool:
        """Return whether the cache may hold that many rows of that many tokens."""

    def group(self, row: Row) -> Hashable:
        """Return what rows that start together must have in common."""

    def reserve(self, n_rows: int, width: int, n_used: int) -> None:
        """Make room; the first `n_used` rows are kept."""

    def start(self, rows: Sequence[Row], first: int, budget: int) -> torch.Tensor | None:
        """Compute (a piece of) prompts into the rows from `first` on; logits (rows, vocabulary) when all is done."""

    def decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Compute the newest token of rows 0, 1, …; return logits (rows, vocabulary)."""

    def keep(self, order: Sequence[int]) -> None:
        """Make row `order[j]` row j, for all j in rising order; drop the others."""


class RunningBatch:
    """Drives a core. `budget` is how many prompt tokens may be computed between two tokens of the running rows.

    `adapted` is entered around each call of the model with the adapters of its rows.
    """

    def __init__(
        self,
        core: Core,
        spelled: Spelled,
        end_ids: frozenset[int],
        max_rows: int,
        budget: int,
        adapted: Callable[[Sequence[Any]], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        self._core = core
        self._spelled = spelled
        self._end_ids = end_ids
        self.max_rows = max_rows
        self.budget = budget
        self._adapted = adapted
        self._waiting: deque[Row] = deque()
        self._starting: list[Row] = []
        self._running: list[Row] = []

    def step(self, joining: Sequence[Job], leaving: Sequence[Job]) -> StepReport:
        """Drop, queue, and compute one token for each running row."""
        if leaving:
            self._leave(set(map(id, leaving)))
        self._waiting.extend(self._row(job) for job in joining)
        n_preempted = self._shrink()
        self._admit()
        deltas = self._continue()
        n_prompt = sum(row.length - row.n_cached for row in self._starting)
        deltas += self._begin()
        n_prompt -= sum(row.length - row.n_cached for row in self._starting)
        ended = {id(delta.job) for delta in deltas if delta.is_last}
        if ended:
            self._drop(ended)
        cached = sum(row.n_cached for row in (*self._running, *self._starting))
        n_new = sum(delta.n_tokens for delta in deltas)
        n_running = len(self._running) + len(self._starting)
        return StepReport(deltas, len(self._waiting), n_running, n_prompt, n_new, cached, n_preempted)

    def _row(self, job: Job) -> Row:
        chooser = Chooser(job.sampling, job.prompt, job.index)
        return Row(job, chooser, Speller(self._spelled.text, job.sampling.stop))

    def _leave(self, jobs: set[int]) -> None:
        self._waiting = deque(row for row in self._waiting if id(row.job) not in jobs)
        self._drop(jobs)

    def _drop(self, jobs: set[int]) -> None:
        """Take rows out of the batch; the last running rows fill the gaps."""
        kept = [index for index, row in enumerate(self._running) if id(row.job) not in jobs]
        n_kept = len(kept)
        low, high = [i for i in kept if i < n_kept], [i for i in kept if i >= n_kept]
        gaps = sorted(set(range(n_kept)) - set(low))
        order = list(range(n_kept))
        for gap, source in zip(gaps, high, strict=True):
            order[gap] = source
        first = len(self._running)
        starting = [index for index, row in enumerate(self._starting) if id(row.job) not in jobs]
        if n_kept == first and len(starting) == len(self._starting):
            return
        self._running = [self._running[i] for i in order]
        self._starting = [self._starting[i] for i in starting]
        self._core.keep([*order, *(first + i for i in starting)])

    def _shrink(self) -> int:
        """Send the youngest rows back to waiting until those left have room for their next token."""
        n_preempted = 0
        while rows := [*self._running, *self._starting]:
            width = max(row.length for row in rows)
            if self._core.fits(len(rows), width):
                self._core.reserve(len(rows), width, len(rows))
                break
            youngest = rows[-1]  # rows are in order of arrival, but for those that filled a gap
            self._drop({id(youngest.job)})
            youngest.n_cached = 0
            self._waiting.appendleft(youngest)
            n_preempted += 1
        return n_preempted

    def _admit(self) -> None:
        """Let waiting rows in, in their order, while there is room."""
        if self._starting or (self._running and not self._core.joins_late):
            return
        n_rows, width = len(self._running), max((row.length for row in self._running), default=0)
        longest = 0
        while self._waiting and n_rows < self.max_rows:
            row = self._waiting[0]
            longest = max(longest, row.length)
            if not self._core.fits(n_rows + 1, max(width, longest) + 1):
                break
            if self._starting and (len(self._starting) + 1) * longest > self.budget:
                break
            if self._starting and self._core.group(row) != self._core.group(self._starting[0]):
                break
            self._starting.append(self._waiting.popleft())
            n_rows += 1
        if self._starting:
            width = max(width, *(row.length for row in self._starting)) + 1
            self._core.reserve(n_rows, width, len(self._running))

    def _continue(self) -> list[Delta]:
        if not self._running:
            return []
        return self._advance(self._running, lambda: self._core.decode(self._running))

    def _begin(self) -> list[Delta]:
        if not self._starting:
            return []
        deltas = self._advance(
            self._starting, lambda: self._core.start(self._starting, len(self._running), self.budget)
        )
        if deltas:
            self._running, self._starting = [*self._running, *self._starting], []
        return deltas

    def _advance(self, rows: Sequence[Row], compute: Callable[[], torch.Tensor | None]) -> list[Delta]:
        """Compute and choose a token a row; whatever goes wrong ends these rows and nobody else's."""
        try:
            with self._adapted([row.job.adapter for row in rows]):
                logits = compute()
            choices = None if logits is None else choose(logits, [row.chooser for row in rows])
            return [] if choices is None else [self._grow(*pair) for pair in zip(rows, choices, strict=True)]
        except Exception as exc:
            logger.exception("a generation step failed")
            return [Delta(row.job, error=_failure(exc)) for row in rows]

    def _grow(self, row: Row, choice: Choice | None) -> Delta:
        """Add the chosen token to its row."""
        if choice is None:
            return Delta(row.job, error=EngineFailure("the model gave no numbers for this input"))
        wish = row.job.sampling
        row.new.append(choice.token)
        if choice.token in self._end_ids and not wish.ignore_eos:
            return Delta(row.job, row.speller.flush(), 1, finish=Finish.STOP)
        text, is_stopped = row.speller.push(choice.token)
        logprobs = self._logprobs(choice) if wish.logprobs is not None else ()
        if is_stopped:
            return Delta(row.job, text, 1, logprobs, Finish.STOP)
        if len(row.new) >= wish.max_tokens:
            return Delta(row.job, text + row.speller.flush(), 1, logprobs, Finish.LENGTH)
        return Delta(row.job, text, 1, logprobs)

    def _logprobs(self, choice: Choice) -> tuple[TokenLogprob, ...]:
        spell = self._spelled.token
        return (TokenLogprob(spell(choice.token), choice.logprob, tuple((spell(token), p) for token, p in choice.top)),)


def _failure(exc: Exception) -> ServeError:
    if isinstance(exc, ServeError):
        return exc
    reason = f"{type(exc).__name__}: {exc}"[:300]
    return EngineFailure(f"the model failed: {reason}", reason=reason)
