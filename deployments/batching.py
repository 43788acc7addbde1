"""Items in, batches out when the engine is free: the queue in front of one loaded model.

States of an item:

    submit ──▶ waiting ──▶ in a batch ──▶ output
                  │             └───────▶ its own error (a failing batch is halved until one item is left)
                  └▶ dropped at dispatch: its future was cancelled, or its deadline has passed

Nothing is timed by a window: while the device is busy items gather, and the moment it is free the first in turn
(`order.py`) leaves with those that fit to it, up to the cost at which a larger batch gains nothing (`speed.py`).
Pure asyncio; used by `deployments.loaded`, one queue a loaded model.
"""

import asyncio
import contextvars
import logging
from bisect import insort
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from deployments.batches import BatchRecord, Done, RunBatch, choose_packed, choose_padded
from deployments.errors import DeadlineExceeded, EngineFailure, InputTooLong, Overloaded, ServeError
from deployments.order import FairOrder, Place
from deployments.spec import BatchLimits
from deployments.speed import Speed
from deployments.turns import Turn
from deployments.types import MONOTONIC, Clock, Item

logger = logging.getLogger(__name__)

_LOOK_AHEAD = 512  # waiting items considered for one batch
_HEAD_START = 8192  # tokens by which a step of priority goes ahead


@dataclass(slots=True)
class _Waiting:
    item: Item
    future: asyncio.Future[Done]
    deadline: float
    since: float
    place: Place
    trace: str


class BatchQueue:
    """Batches one model's items. `device` is this model's turn on a device that models share: its holder may run.

    `is_packed` says how costs add up: as they are, or each item padded to the longest.
    """

    def __init__(
        self,
        run: RunBatch,
        limits: BatchLimits,
        device: Turn,
        clock: Clock = MONOTONIC,
        observe: Callable[[BatchRecord], None] = lambda _: None,
        *,
        is_packed: Callable[[], bool] = lambda: False,
        span: Callable[[int, Sequence[str]], AbstractContextManager[None]] = lambda *_: nullcontext(),
    ) -> None:
        self._run = run
        self.limits = limits
        self.device = device
        self._clock = clock
        self._observe = observe
        self._is_packed = is_packed
        self._span = span
        self._waiting: list[_Waiting] = []  # by place
        self._cost = 0  # of all that waits
        self._order = FairOrder(_HEAD_START)
        self._speed = Speed()
        self._task: asyncio.Task[None] | None = None
        self._running_until = 0.0

    @property
    def n_waiting(self) -> int:
        """Items not yet in a batch."""
        return len(self._waiting)

    @property
    def waiting_s(self) -> float:
        """Predicted seconds of work queued and running; 0.0 before the first batch has been timed."""
        running_s = max(0.0, self._running_until - self._clock())
        return running_s + self.predict_s(len(self._waiting), self._cost)

    def predict_s(self, n_items: float, cost: float) -> float:
        """Return the seconds that so much work takes, in batches as they are formed here."""
        n_batches = max(n_items / self.limits.max_items, cost / self._budget)
        return self._speed.predict(cost, n_batches)

    def submit(
        self, items: Sequence[Item], deadline: float, tenant: str = "", priority: int = 0, trace: str = ""
    ) -> list[asyncio.Future[Done]]:
        """Queue the items of one request; each future gives a `Done` or the item's own error.

        Raises:
            InputTooLong: more items than may ever wait.
            Overloaded: the queue is full, or what goes first takes longer than this request has.
        """
        self._admit(items, deadline, self._order.next_place(tenant, priority))
        now, loop = self._clock(), asyncio.get_running_loop()
        entries = [
            _Waiting(item, loop.create_future(), deadline, now, self._order.place(tenant, priority, item.cost), trace)
            for item in items
        ]
        for entry in entries:
            insort(self._waiting, entry, key=_rank)
        self._cost += sum(item.cost for item in items)
        if self._task is None:
            # NOTE: an empty context, or the batches of others would run as part of the request that came first.
            self._task = loop.create_task(self._drain(), context=contextvars.Context())
        return [entry.future for entry in entries]

    def _admit(self, items: Sequence[Item], deadline: float, place: Place) -> None:
        """Refuse what cannot be answered in time; where the queue is full, what would go last gives way."""
        limit = self.limits.max_queue_items
        if len(items) > limit:
            message = f"a request may hold {limit} items, this one makes {len(items)}; split it"
            raise InputTooLong(message, max_items=limit, n_items=len(items))
        left_s = deadline - self._clock()
        if 0 < left_s < self.waiting_s and left_s < (ahead_s := self._ahead_s(place)):
            raise _overloaded(
                f"what goes first takes {ahead_s:.3g} s, the request has {left_s:.3g} s", ahead_s - left_s
            )
        n_over = len(self._waiting) + len(items) - limit
        if n_over > 0:
            self._keep([entry for entry in self._waiting if not entry.future.done()])
            self._shed(len(self._waiting) + len(items) - limit, place)

    def _shed(self, n_over: int, place: Place) -> None:
        """Make room for work at `place` by dropping the last items, if they stand behind it."""
        if n_over <= 0:
            return
        message = f"{len(self._waiting)} items are waiting and {self.limits.max_queue_items} may"
        last = self._waiting[-n_over:]
        wait_s = self.predict_s(n_over, sum(entry.item.cost for entry in last))
        if last[0].place.rank <= place.rank:
            raise _overloaded(message, wait_s)
        for entry in last:
            _fail(entry, _overloaded(message, wait_s))
        self._keep(self._waiting[:-n_over])

    def _ahead_s(self, place: Place) -> float:
        costs = [entry.item.cost for entry in self._waiting if entry.place.rank <= place.rank]
        return self.predict_s(len(costs), sum(costs))

    @property
    def _budget(self) -> int:
        return min(self.limits.max_tokens, self._speed.budget)

    def _keep(self, entries: list[_Waiting]) -> None:
        self._waiting = entries
        self._cost = sum(entry.item.cost for entry in entries)
        if not entries:
            self._order.idle()

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
            self._keep([])

    def _take(self) -> list[_Waiting]:
        """Remove and return the next batch; drop what nobody waits for any more."""
        now = self._clock()
        alive: list[_Waiting] = []
        for n_seen, entry in enumerate(self._waiting):
            if len(alive) == _LOOK_AHEAD:
                alive += self._waiting[n_seen:]
                break
            if entry.future.done():
                continue
            if entry.deadline <= now:
                _fail(entry, DeadlineExceeded("the deadline passed while the request waited for the model"))
                continue
            alive.append(entry)
        candidates = [(entry.item.cost, entry.item.group) for entry in alive[:_LOOK_AHEAD]]
        choose = choose_packed if self._is_packed() else choose_padded
        chosen = choose(candidates, self.limits.max_items, self._budget)
        batch = [alive[index] for index in sorted(chosen)]
        for entry in batch:
            self._order.began(entry.place)
        self._keep([entry for index, entry in enumerate(alive) if index not in chosen])
        return batch

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        started = self._clock()
        cost = self._cost_of(batch)
        self._running_until = started + self._speed.predict(cost)
        try:
            with self._span(len(batch), [e.trace for e in batch if e.trace]):
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
            self._speed.learn(cost, run_s)
            for entry, output in zip(batch, outputs, strict=True):
                if not entry.future.done():
                    entry.future.set_result(Done(output, started - entry.since, run_s))
            self._record(batch, run_s, is_failed=False)
        finally:
            self._running_until = 0.0

    async def _blame(self, batch: list[_Waiting], exc: Exception) -> None:
        """Find the items that make a batch fail, by halves; the others get their answers."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._run_batch(batch[:middle])
            await self._run_batch(batch[middle:])
            return
        self._record(batch, 0.0, is_failed=True)
        if isinstance(exc, ServeError):
            _fail(batch[0], exc)
            return
        logger.error("the engine raised on one item", exc_info=exc)
        reason = f"{type(exc).__name__}: {exc}"[:300]
        _fail(batch[0], EngineFailure(f"the model failed on this input: {reason}", reason=reason))

    def _cost_of(self, batch: list[_Waiting]) -> int:
        costs = [entry.item.cost for entry in batch]
        return sum(costs) if self._is_packed() else len(costs) * max(costs)

    def _record(self, batch: list[_Waiting], run_s: float, *, is_failed: bool) -> None:
        n_tokens = sum(entry.item.cost for entry in batch)
        self._observe(BatchRecord(len(batch), n_tokens, self._cost_of(batch), run_s, is_failed))


def _rank(entry: _Waiting) -> float:
    return entry.place.rank


def _overloaded(message: str, wait_s: float) -> Overloaded:
    return Overloaded(message, retry_after_s=round(max(wait_s, 0.05), 3))


def _fail(entry: _Waiting, error: ServeError) -> None:
    if not entry.future.done():
        entry.future.set_exception(error)
