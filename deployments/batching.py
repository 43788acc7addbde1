"""Items in, batches out when the engine is free: the queue in front of one loaded model.

States of an item:

    submit ──▶ waiting ──▶ in a batch ──▶ output
                  │             └───────▶ its own error (a failing batch is halved until one item is left)
                  └▶ dropped at dispatch: its future was cancelled, or its deadline has passed

Nothing is timed by a window: while the device is busy items gather, and the moment it is free the oldest item leaves
with those most like it in length. Pure asyncio; used by `deployments.loaded`, one queue a loaded model.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from deployments.errors import DeadlineExceeded, EngineFailure, InputTooLong, Overloaded, ServeError
from deployments.spec import BatchLimits
from deployments.turns import Turn
from deployments.types import MONOTONIC, Clock, Item

logger = logging.getLogger(__name__)

RunBatch: TypeAlias = Callable[[list[Item]], Awaitable[Sequence[Any]]]

# One forward pass costs about as much as this many tokens before the first token is computed (all-MiniLM-L6-v2 on
# one core: 9 ms against 0.23 ms a token). Padding an item by more than that costs more than a batch of its own.
OVERHEAD_TOKENS = 48
_LOOK_AHEAD = 512  # waiting items considered for one batch
_SMOOTHING = 0.2  # weight of the newest batch in the running estimate of speed


@dataclass(frozen=True, slots=True)
class Done:
    """One item's output and the seconds it waited and ran."""

    output: Any
    queue_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What happened in one batch, for metrics; tokens are as counted by the engine's items."""

    n_items: int
    n_tokens: int
    padded_tokens: int
    run_s: float
    is_failed: bool


@dataclass(slots=True)
class _Waiting:
    item: Item
    future: asyncio.Future[Done]
    deadline: float
    since: float


class BatchQueue:
    """Batches one model's items. `device` is this model's turn on a device that models share: its holder may run."""

    def __init__(
        self,
        run: RunBatch,
        limits: BatchLimits,
        device: Turn,
        clock: Clock = MONOTONIC,
        observe: Callable[[BatchRecord], None] = lambda _: None,
    ) -> None:
        self._run = run
        self.limits = limits
        self.device = device
        self._clock = clock
        self._observe = observe
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None
        self._s_per_token = 0.0
        self._running_until = 0.0

    @property
    def n_waiting(self) -> int:
        """Items not yet in a batch."""
        return len(self._waiting)

    @property
    def waiting_s(self) -> float:
        """Predicted seconds of work queued and running; 0.0 before the first batch has been timed."""
        queued = sum(w.item.cost for w in self._waiting) * self._s_per_token
        return queued + max(0.0, self._running_until - self._clock())

    def submit(self, items: Sequence[Item], deadline: float) -> list[asyncio.Future[Done]]:
        """Queue the items of one request; each future gives a `Done` or the item's own error.

        Raises:
            InputTooLong: more items than may ever wait.
            Overloaded: the queue is full now.
        """
        limit = self.limits.max_queue_items
        if len(items) > limit:
            message = f"a request may hold {limit} items, this one makes {len(items)}; split it"
            raise InputTooLong(message, max_items=limit, n_items=len(items))
        if len(self._waiting) + len(items) > limit:
            raise Overloaded(
                f"{len(self._waiting)} items are waiting and {limit} may",
                retry_after_s=round(max(self.waiting_s, 0.05), 3),
            )
        now, loop = self._clock(), asyncio.get_running_loop()
        entries = [_Waiting(item, loop.create_future(), deadline, now) for item in items]
        self._waiting.extend(entries)
        if self._task is None:
            # NOTE: an empty context, or the batches of others would run as part of the request that came first.
            self._task = loop.create_task(self._drain(), context=contextvars.Context())
        return [entry.future for entry in entries]

    async def _drain(self) -> None:
        try:
            while self._waiting:
                async with self.device:
                    batch = self._take()
                    if batch:
                        await self._run_batch(batch)
        finally:
            self._task = None
            for entry in self._waiting:  # only if this task itself was cancelled or broke
                _fail(entry, EngineFailure("the batch queue stopped"))
            self._waiting.clear()

    def _take(self) -> list[_Waiting]:
        """Remove and return the next batch; drop what nobody waits for any more."""
        now = self._clock()
        alive: list[_Waiting] = []
        for entry in self._waiting:
            if entry.future.done():
                continue
            if entry.deadline <= now:
                _fail(entry, DeadlineExceeded("the deadline passed while the request waited for the model"))
                continue
            alive.append(entry)
        chosen = choose([(e.item.cost, e.item.group) for e in islice(alive, _LOOK_AHEAD)], self.limits)
        self._waiting = [entry for index, entry in enumerate(alive) if index not in chosen]
        return [alive[index] for index in sorted(chosen)]

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        started = self._clock()
        tokens = sum(e.item.cost for e in batch)
        self._running_until = started + tokens * self._s_per_token
        try:
            outputs = await self._run([e.item for e in batch])
            if len(outputs) != len(batch):
                raise EngineFailure(f"the engine gave {len(outputs)} outputs for {len(batch)} items")
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                for entry in batch:
                    _fail(entry, EngineFailure("the batch queue stopped"))
                raise
            await self._blame(batch, EngineFailure("the run of this batch was cancelled"))
        except Exception as exc:
            await self._blame(batch, exc)
        else:
            run_s = self._clock() - started
            self._learn(tokens, run_s)
            for entry, output in zip(batch, outputs, strict=True):
                if not entry.future.done():
                    entry.future.set_result(Done(output, started - entry.since, run_s))
            self._record(batch, tokens, run_s, is_failed=False)

    async def _blame(self, batch: list[_Waiting], exc: Exception) -> None:
        """Find the items that make a batch fail, by halves; the others get their answers."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._run_batch(batch[:middle])
            await self._run_batch(batch[middle:])
            return
        self._record(batch, batch[0].item.cost, 0.0, is_failed=True)
        if isinstance(exc, ServeError):
            _fail(batch[0], exc)
            return
        logger.error("the engine raised on one item", exc_info=exc)
        reason = f"{type(exc).__name__}: {exc}"[:300]
        _fail(batch[0], EngineFailure(f"the model failed on this input: {reason}", reason=reason))

    def _learn(self, tokens: int, run_s: float) -> None:
        sample = run_s / max(tokens, 1)
        self._s_per_token += (sample - self._s_per_token) * (_SMOOTHING if self._s_per_token else 1.0)
        self._running_until = 0.0

    def _record(self, batch: list[_Waiting], tokens: int, run_s: float, *, is_failed: bool) -> None:
        padded = len(batch) * max(e.item.cost for e in batch)
        self._observe(BatchRecord(len(batch), tokens, padded, run_s, is_failed))


def choose(waiting: Sequence[tuple[int, Hashable]], limits: BatchLimits) -> set[int]:
    """Pick the next batch from (cost, group) in order of arrival; return the indices.

    The oldest is always in it, whatever it costs. Around it, in order of cost, neighbours of its group join while
    the batch stays in its limits and padding costs less than running the neighbour on its own would.
    """
    if not waiting:
        return set()
    group = waiting[0][1]
    # A stable sort: among equal costs the older comes first.
    order = sorted((i for i, (_, g) in enumerate(waiting) if g == group), key=lambda i: waiting[i][0])
    costs = [waiting[i][0] for i in order]
    low = high = order.index(0)
    while high - low + 1 < limits.max_items:
        size, top = high - low + 1, costs[high]
        # Padding that joining would cost: a shorter item is filled up, a longer one fills all others up.
        shorter = top - costs[low - 1] if low > 0 else None
        longer = (costs[high + 1] - top) * size if high + 1 < len(costs) else None
        grows_up = longer is not None and (shorter is None or longer <= shorter)
        padding = longer if grows_up else shorter
        new_top = costs[high + 1] if grows_up else top
        if padding is None or padding > OVERHEAD_TOKENS or (size + 1) * new_top > limits.max_tokens:
            break
        low, high = (low, high + 1) if grows_up else (low - 1, high)
    return set(order[low : high + 1])


def _fail(entry: _Waiting, error: ServeError) -> None:
    if not entry.future.done():
        entry.future.set_exception(error)
