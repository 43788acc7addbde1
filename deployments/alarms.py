"""Many deadlines on one timer of the loop, for what has a deadline a request and hardly ever meets it.

`asyncio.timeout` costs about 8 µs a use; an alarm costs one. Used by `serve_app.forwarder`, `serve_app.http` and
`deployments.replica`.
"""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from types import TracebackType

from deployments.types import MONOTONIC, Clock

_KEPT = 64  # cancelled alarms that may lie about, and as many as there are live ones


class Alarm:
    """One deadline; cancel it when it no longer matters."""

    __slots__ = ("_alarms", "ring")

    def __init__(self, alarms: "Alarms", ring: Callable[[], None]) -> None:
        self._alarms = alarms
        self.ring: Callable[[], None] | None = ring

    def cancel(self) -> None:
        """Never ring."""
        if self.ring is not None:
            self.ring = None
            self._alarms.n_cancelled += 1


class Alarms:
    """All alarms of one loop that their owner has set. `clock` runs as the loop's does."""

    def __init__(self, clock: Clock = MONOTONIC) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self.n_cancelled = 0  # of those in the heap

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, when: float, ring: Callable[[], None]) -> Alarm:
        """Have `ring` called at `when`, from the loop."""
        if self.n_cancelled > _KEPT and self.n_cancelled > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].ring is not None]
            heapify(self._heap)
            self.n_cancelled = 0
        alarm = Alarm(self, ring)
        heappush(self._heap, (when, next(self._numbers), alarm))
        if self._timer is None or when < self._rings_at:
            self._wind(when)
        return alarm

    def _wind(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = when
        self._timer = asyncio.get_running_loop().call_later(max(when - self._clock(), 0.0), self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = max(self._clock(), self._rings_at)  # timers of loops are a little early at times
        while self._heap and (self._heap[0][2].ring is None or self._heap[0][0] <= now):
            alarm = heappop(self._heap)[2]
            ring, alarm.ring = alarm.ring, None
            if ring is None:
                self.n_cancelled -= 1
            else:
                ring()
        if self._heap:  # anew in any case: who rang may have set others, which are not the first
            self._wind(self._heap[0][0])


class Limit:
    """An `async with` that ends in TimeoutError at `when`: `asyncio.timeout` on a shared timer."""

    __slots__ = ("_alarm", "_alarms", "_n_cancelled", "_task", "_when", "is_over")

    def __init__(self, alarms: Alarms, when: float) -> None:
        self._alarms = alarms
        self._when = when
        self.is_over = False

    async def __aenter__(self) -> "Limit":
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a limit needs a task to interrupt")
        self._task = task
        self._n_cancelled = task.cancelling()
        self._alarm = self._alarms.set(self._when, self._ring)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm.cancel()
        # Somebody else may have cancelled the task as well: then it stays cancelled.
        if self.is_over and self._task.uncancel() <= self._n_cancelled and kind is asyncio.CancelledError:
            raise TimeoutError from exc

    def _ring(self) -> None:
        self.is_over = True
        self._task.cancel()
