"""Coalesces concurrent requests for one model into few handle calls: a call costs many times what a request in it does.

A lane per model holds what waits (`lanes.py`). A call leaves at once when the lane is idle; the more calls are out for
a copy of the model, the more requests have to gather for the next one, a second one only for a moment. Outcomes come
back as the pool's batches finish, not when the whole call is done.

A copy that says nothing for far longer than usual, in a pool of which a replica does not even say how it is, may be
frozen: what is on board is asked for on the next replica as well, and the first answer counts (`silence.py`).

A lane's calls run in tasks of their own with an empty context: Serve ties a call to the request it finds in the
context, and that one's disconnect would cancel everybody in the call. Pure asyncio; called by `gateway.py`, sends
through whatever `Send` it is given (`handles.py`).
"""

import asyncio
import contextvars
import logging
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from deployments.alarms import Alarm, Alarms
from deployments.errors import DeadlineExceeded, ReplicaLost, ServeError
from deployments.types import MONOTONIC, Clock, InferRequest, InferResult
from serve_app.departures import Departures, Tell
from serve_app.lanes import COPY_HOLD_S, Call, Lane, OnBoard, Send, Target, Waiting

logger = logging.getLogger(__name__)

WARM_S = 60.0  # how long a copy may take to load
_LOOK_AGAIN_S = 1.0
_MANY_LANES = 4096  # kept; beyond, idle ones are forgotten


@dataclass(slots=True)
class _Sent:
    """One call under way to the copy `holder`."""

    lane: Lane
    entries: Sequence[Waiting]
    holder: int
    at: float
    task: asyncio.Task[None] | None
    alarm: Alarm | None = None
    detour: asyncio.Task[None] | None = None  # asks another copy for the same

    def end(self) -> None:
        """Stop looking after it."""
        if self.alarm is not None:
            self.alarm.cancel()
        if self.detour is not None:
            self.detour.cancel()


class Forwarder:
    """Sends requests to pools, many to a call."""

    def __init__(
        self,
        send: Send,
        clock: Clock = MONOTONIC,
        observe: Callable[[Call], None] = lambda _: None,
        tell: Tell | None = None,
        has_silent: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._send = send
        self._clock = clock
        self._observe = observe
        self._has_silent = has_silent  # whether replicas of a pool do not even say how they are
        self._alarms = Alarms(clock)
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._id = uuid.uuid4().hex[:12]
        self._numbers = count()
        self._departures = Departures(self._id, tell, self._spawn)

    async def forward(self, target: Target, request: InferRequest, deadline: float) -> InferResult:
        """Return the pool's answer to one request, or raise its error; `deadline` is on this object's clock.

        Raises:
            DeadlineExceeded: no answer by then, wherever the request was.
            Overloaded: too many requests wait for this model, or those ahead take longer than this one has.
            ModelLoading: it is being loaded, and as many as may wait for that do.
        """
        lane = self._lane(target)
        entry = lane.enter(request, deadline, self._clock())
        if not lane.is_called:
            # Not at once: on a busy loop others have arrived in this very round, and may share the call.
            lane.is_called = True
            asyncio.get_running_loop().call_soon(self._pump, lane)
        alarm = self._alarms.set(deadline, partial(_expire, entry, lane))
        try:
            return await entry.future
        finally:
            alarm.cancel()
            lane.n_open -= 1
            entry.future.cancel()
            if entry.on_board is not None:
                if not entry.on_board.left(entry) and entry.future.cancelled() and entry.sent_as is not None:
                    self._departures.note(target.pool, *entry.sent_as)
                entry.on_board = None  # a circle would keep the request and its answer until the next collection

    async def aclose(self) -> None:
        """Cancel all calls."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _lane(self, target: Target) -> Lane:
        lane = self._lanes.get((target.pool, target.key))
        if lane is None:
            if len(self._lanes) >= _MANY_LANES:
                self._lanes = {name: lane for name, lane in self._lanes.items() if not lane.is_idle}
            lane = self._lanes[target.pool, target.key] = Lane(target)
        lane.target = target
        return lane

    def _pump(self, lane: Lane) -> None:
        """Send as many calls as may be out."""
        lane.is_called = False
        if (cold := lane.next_to_warm(self._clock())) is not None:
            lane.warming = self._spawn(self._warm(lane, cold))
        while (ready := lane.next_call(self._clock())) is not None:
            copy, entries = ready
            on_board = OnBoard(len(entries))
            for entry in entries:
                entry.on_board = on_board
            on_board.task = self._spawn(self._call(lane, entries, copy))
        if lane.waiting and not lane.is_gathering and self._clock() < lane.gathers_until:
            lane.is_gathering = True
            self._alarms.set(lane.gathers_until, partial(self._has_gathered, lane))

    def _has_gathered(self, lane: Lane) -> None:
        lane.is_gathering = False
        self._pump(lane)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _warm(self, lane: Lane, copy: int) -> None:
        """Have a further copy load the model before it gets requests: those that wait are served by the others."""
        try:
            async with asyncio.timeout(WARM_S), aclosing(self._send(Call(lane.target, copy=copy))) as nothing:
                async for _ in nothing:
                    pass
        except (ServeError, TimeoutError) as exc:
            logger.warning("model %s gets no copy %d yet: %s", lane.target.key, copy + 1, exc)
            lane.warm_after = self._clock() + COPY_HOLD_S
        else:
            lane.n_warm = max(lane.n_warm, copy + 1)
        finally:
            lane.warming = None
        self._pump(lane)

    async def _call(self, lane: Lane, entries: list[Waiting], copy: int) -> None:
        try:
            latest = max(entry.deadline for entry in entries)
            async with asyncio.timeout(latest - self._clock()):
                await self._send_twice(lane, entries, copy)
        except TimeoutError:
            pass  # every request on board has passed its own deadline and been told so
        except ServeError as exc:
            for entry in entries:
                entry.resolve(exc)
        except Exception:
            logger.exception("a call to pool %s for model %s failed", lane.target.pool, lane.target.key)
            for entry in entries:
                entry.resolve(ServeError("internal error"))
        finally:
            lane.in_flight[copy] -= 1
            self._pump(lane)

    async def _send_twice(self, lane: Lane, entries: list[Waiting], copy: int) -> None:
        """Send a call; if its replica died, once more (an inference has no effect that could happen twice)."""
        try:
            await self._deliver(lane, entries, copy)
        except ReplicaLost as exc:
            left = [entry for entry in entries if not entry.future.done()]
            logger.warning("%s: %d requests for model %s are sent again", exc.message, len(left), lane.target.key)
            if left:
                await self._deliver(lane, left, copy)

    async def _deliver(self, lane: Lane, entries: Sequence[Waiting], copy: int) -> None:
        """Send one call and hand out its outcomes as they come."""
        now = self._clock()
        holder = lane.silence.instead_of(copy, lane.target.n_replicas, now)
        sent = _Sent(lane, entries, holder, now, asyncio.current_task())
        self._look_after(sent, now)
        try:
            async with aclosing(self._send(self._make_call(lane, entries, holder))) as outcomes:
                async for some in outcomes:
                    now = self._clock()
                    lane.silence.heard(holder, now, sent.at)
                    lane.learn(some, now)
                    for index, outcome in some:
                        entries[index].resolve(outcome)
        finally:
            sent.end()
        if not all(entry.future.done() for entry in entries):
            raise ReplicaLost(f"a replica of pool {lane.target.pool!r} left requests unanswered")

    def _look_after(self, sent: _Sent, now: float) -> None:
        """Suspect the copy if it says nothing to anybody for too long, and send the call on another way."""
        target, silence = sent.lane.target, sent.lane.silence
        if target.n_replicas < 2:
            return
        left_s = silence.patience_s(target.load_s) - silence.silent_s(sent.holder, now, sent.at)
        if left_s <= 0 and not self._has_silent(target.pool):
            left_s = _LOOK_AGAIN_S  # it is only slow: asking others as well would add to what makes it so
        elif left_s <= 0:
            silence.suspect(sent.holder, now)
            if silence.instead_of(sent.holder, target.n_replicas, now) != sent.holder:
                sent.detour = self._spawn(self._take_detour(sent))
                return
            left_s = silence.patience_s(target.load_s)
        sent.alarm = self._alarms.set(now + left_s, lambda: self._look_after(sent, self._clock()))

    async def _take_detour(self, sent: _Sent) -> None:
        """Ask the next copy for what a silent one has on board; once all of it is answered, leave that one alone."""
        left = [entry for entry in sent.entries if not entry.future.done()]
        if not left:
            return
        logger.warning("a replica of pool %s is silent; %d requests for model %s are sent to another as well",
                       sent.lane.target.pool, len(left), sent.lane.target.key)  # fmt: skip
        try:
            await self._deliver(sent.lane, left, sent.holder)
        except ServeError as exc:
            logger.warning("the other replica did not answer either: %s", exc.message)
        else:
            if sent.task is not None:
                sent.task.cancel()

    def _make_call(self, lane: Lane, entries: Sequence[Waiting], copy: int) -> Call:
        now = self._clock()
        call = Call(
            target=lane.target,
            requests=[entry.request for entry in entries],
            timeouts_s=[max(entry.deadline - now, 0.001) for entry in entries],
            backlog=-(-len(lane.waiting) // lane.n_copies),
            sender=self._id,
            copy=copy,
            number=next(self._numbers),
        )
        for index, entry in enumerate(entries):
            entry.sent_as = call.number, index
        self._observe(call)
        return call


def _expire(entry: Waiting, lane: Lane) -> None:
    entry.is_late = True
    late = DeadlineExceeded(f"no answer from model {lane.target.key!r} in time")
    entry.resolve(late.after(wait_s) if (wait_s := lane.wait_s) else late)
