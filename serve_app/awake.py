"""A clock that stands still while this process does: a machine that slept, a container that was frozen.

What is measured by it, such as how fast a model answers, is not spoilt by a minute in which nobody could be answered.
Started by `ingress.py`, read by `bulkhead.py`.
"""

import asyncio

from deployments.types import MONOTONIC, Clock

_BEAT_S = 1.0
_ASLEEP_S = 3.0  # without a beat or a reading


class AwakeClock:
    """Seconds this process was awake."""

    def __init__(self, clock: Clock = MONOTONIC) -> None:
        self._clock = clock
        self._read_at = clock()
        self._lost_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> float:
        """Return the time; until `start`, any gap between readings is taken for sleep."""
        now = self._clock()
        if now - self._read_at > _ASLEEP_S:
            self._lost_s += now - self._read_at
        self._read_at = now
        return now - self._lost_s

    def start(self) -> None:
        """Read the clock every second from now on, from the running loop."""
        self()
        self._timer = asyncio.get_running_loop().call_later(_BEAT_S, self.start)

    def stop(self) -> None:
        """Read it no more."""
        if self._timer is not None:
            self._timer.cancel()
