"""Coalesces concurrent requests for one model into few handle calls: a call costs many times what a request in it does.

A lane per model holds what waits. A call leaves at once when the lane is idle; while `MAX_IN_FLIGHT` calls are out
for each copy of the model, requests gather, and the next call takes what has gathered. No timer, no window.

A lane's calls run in tasks of their own with an empty context: Serve ties a call to the request it finds in the
context, and that one's disconnect would cancel everybody in the call. Pure asyncio; called by `gateway.py`, sends
through whatever `Send` it is given (`handles.py`).
"""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from deployments.errors import DeadlineExceeded, ModelLoading, Overloaded, ReplicaLost, ServeError
from deployments.types import MONOTONIC, Clock, InferRequest, InferResult, Outcome

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 2  # calls a copy has out: one runs while the next one's requests are prepared
MAX_REQUESTS = 64  # in one call
MAX_CALL_BYTES = 32 * 2**20
MAX_WAITING = 4096  # requests of one model; beyond, 429
COPY_REQUESTS = 128  # waiting requests that earn a model one more copy
COPY_HOLD_S = 10.0  # how long a copy is kept after it was last needed, and how long until one that failed is retried
WARM_S = 60.0  # how long a copy may take to load


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model's requests go."""

    pool: str
    key: str
    n_replicas: int = 1
    is_everywhere: bool = False  # pinned models are in every replica: no copy has to be earned
    max_held: int = 0  # requests that may wait while the model is loaded; 0: it is in memory, or there is no limit
    load_s: float = 0.0  # how long its load is going to take


@dataclass(frozen=True, slots=True)
class Call:
    """One handle call: requests that share it, what still waits behind them, and which copy is meant.

    Without requests it only has the copy loaded.
    """

    target: Target
    requests: Sequence[InferRequest]
    backlog: int
    copy: int


Send: TypeAlias = Callable[[Call], Awaitable[Sequence[Outcome]]]


@dataclass(slots=True)
class _Waiting:
    request: InferRequest
    deadline: float
    future: asyncio.Future[InferResult]
    on_board: "_OnBoard | None" = None


@dataclass(slots=True)
class _OnBoard:
    """The requests of one call under way; it is cancelled when the last of them has left."""

    entries: list[_Waiting]
    task: asyncio.Task[None] | None = None

    def left(self) -> None:
        if self.task is not None and all(entry.future.done() for entry in self.entries):
            self.task.cancel()


@dataclass(slots=True)
class _Lane:
    target: Target
    waiting: deque[_Waiting] = field(default_factory=deque)
    in_flight: list[int] = field(default_factory=lambda: [0])  # by copy
    n_open: int = 0  # requests that wait or are on board
    n_copies: int = 1
    n_warm: int = 1  # of these, those that have the model in memory: requests go to no other
    warming: asyncio.Task[None] | None = None
    warm_after: float = 0.0  # when the next copy may be tried
    needed_at: float = 0.0


class Forwarder:
    """Sends requests to pools, many to a call."""

    def __init__(self, send: Send, clock: Clock = MONOTONIC, observe: Callable[[Call], None] = lambda _: None) -> None:
        self._send = send
        self._clock = clock
        self._observe = observe
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def forward(self, target: Target, request: InferRequest, deadline: float) -> InferResult:
        """Return the pool's answer to one request, or raise its error; `deadline` is on this object's clock.

        Raises:
            DeadlineExceeded: no answer by then, wherever the request was.
            Overloaded: too many requests wait for this model.
            ModelLoading: it is being loaded, and as many as may wait for that do.
        """
        lane = self._lane(target)
        if target.max_held and lane.n_open >= target.max_held:
            reason = f"it is being loaded, and {lane.n_open} requests wait for it already"
            wait_s = round(max(target.load_s, 0.05), 3)
            raise ModelLoading(f"model {target.key!r}: {reason}", reason=reason, retry_after_s=wait_s)
        if len(lane.waiting) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} requests wait for model {target.key!r}", retry_after_s=1.0)
        entry = _Waiting(request, deadline, asyncio.get_running_loop().create_future())
        lane.waiting.append(entry)
        lane.n_open += 1
        self._pump(lane)
        try:
            async with asyncio.timeout(deadline - self._clock()):
                return await entry.future
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from model {target.key!r} in time") from None
        finally:
            lane.n_open -= 1
            entry.future.cancel()
            if entry.on_board is not None:
                entry.on_board.left()
                entry.on_board = None  # a circle would keep the request and its answer until the next collection

    async def aclose(self) -> None:
        """Cancel all calls."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _lane(self, target: Target) -> _Lane:
        lane = self._lanes.get((target.pool, target.key))
        if lane is None:
            lane = self._lanes[target.pool, target.key] = _Lane(target)
        lane.target = target
        return lane

    def _pump(self, lane: _Lane) -> None:
        """Send as many calls as may be out."""
        self._set_copies(lane)
        while lane.waiting:
            copy = min(range(min(lane.n_copies, lane.n_warm)), key=lambda c: lane.in_flight[c])
            if lane.in_flight[copy] >= MAX_IN_FLIGHT:
                return
            entries = self._take(lane)
            if not entries:
                return
            lane.in_flight[copy] += 1
            on_board = _OnBoard(entries)
            for entry in entries:
                entry.on_board = on_board
            work = self._call(lane, on_board, copy)
            task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
            on_board.task = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _set_copies(self, lane: _Lane) -> None:
        """Give a hot model copies by what waits for it, and take them back when it has been quiet."""
        most, now = max(lane.target.n_replicas, 1), self._clock()
        wanted = most if lane.target.is_everywhere else min(most, 1 + len(lane.waiting) // COPY_REQUESTS)
        if wanted >= lane.n_copies or lane.n_copies > most or now - lane.needed_at > COPY_HOLD_S:
            lane.n_copies, lane.needed_at = wanted, now
        lane.in_flight.extend([0] * (lane.n_copies - len(lane.in_flight)))
        if lane.target.is_everywhere:
            lane.n_warm = most
        lane.n_warm = min(lane.n_warm, lane.n_copies)
        if lane.n_warm < lane.n_copies and lane.warming is None and now >= lane.warm_after:
            work = self._warm(lane, lane.n_warm)
            lane.warming = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
            self._tasks.add(lane.warming)
            lane.warming.add_done_callback(self._tasks.discard)

    async def _warm(self, lane: _Lane, copy: int) -> None:
        """Have a further copy load the model before it gets requests: those that wait are served by the others."""
        try:
            async with asyncio.timeout(WARM_S):
                await self._send(Call(lane.target, (), 0, copy))
        except (ServeError, TimeoutError) as exc:
            logger.warning("model %s gets no copy %d yet: %s", lane.target.key, copy + 1, exc)
            lane.warm_after = self._clock() + COPY_HOLD_S
        else:
            lane.n_warm = max(lane.n_warm, copy + 1)
        finally:
            lane.warming = None
        self._pump(lane)

    def _take(self, lane: _Lane) -> list[_Waiting]:
        entries: list[_Waiting] = []
        size = 0
        while lane.waiting and len(entries) < MAX_REQUESTS:
            entry = lane.waiting[0]
            if not entry.future.done():
                size += entry.request.size_bytes
                if entries and size > MAX_CALL_BYTES:
                    break
                entries.append(entry)
            lane.waiting.popleft()
        return entries

    async def _call(self, lane: _Lane, on_board: _OnBoard, copy: int) -> None:
        entries = on_board.entries
        try:
            latest = max(entry.deadline for entry in entries)
            async with asyncio.timeout(latest - self._clock()):
                outcomes = await self._send_twice(lane, entries, copy)
            for entry, outcome in zip(entries, outcomes, strict=True):
                _resolve(entry, outcome)
        except TimeoutError:
            pass  # every request on board has passed its own deadline and been told so
        except ServeError as exc:
            for entry in entries:
                _resolve(entry, exc)
        except Exception:
            logger.exception("a call to pool %s for model %s failed", lane.target.pool, lane.target.key)
            for entry in entries:
                _resolve(entry, ServeError("internal error"))
        finally:
            lane.in_flight[copy] -= 1
            self._pump(lane)
            if not lane.waiting and not any(lane.in_flight) and lane.n_copies == 1:
                self._lanes.pop((lane.target.pool, lane.target.key), None)

    async def _send_twice(self, lane: _Lane, entries: list[_Waiting], copy: int) -> Sequence[Outcome]:
        """Send a call; once more if its replica died (an inference has no effect that could happen twice)."""
        try:
            return await self._send(self._make_call(lane, entries, copy))
        except ReplicaLost as exc:
            logger.warning("%s: %d requests for model %s are sent again", exc.message, len(entries), lane.target.key)
            return await self._send(self._make_call(lane, entries, copy))

    def _make_call(self, lane: _Lane, entries: list[_Waiting], copy: int) -> Call:
        now = self._clock()
        requests = [entry.request.with_timeout(max(entry.deadline - now, 0.001)) for entry in entries]
        call = Call(lane.target, requests, len(lane.waiting), copy)
        self._observe(call)
        return call


def _resolve(entry: _Waiting, outcome: Outcome) -> None:
    if entry.future.done():
        return
    if isinstance(outcome, ServeError):
        entry.future.set_exception(outcome)
    else:
        entry.future.set_result(outcome)
