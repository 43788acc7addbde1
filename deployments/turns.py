"""Whose batch runs next on a device that several models share: weighted fair turns.

Each model has a clock of its own that advances by the time it held the device, divided by its weight; the waiter
whose clock is furthest behind goes next (start-time fair queueing: Goyal, Vin & Cheng, 1996). So a flood on one model
delays another by at most the batch that is running. A model that was idle starts at the clock of now: it has earned no
arrears. Pure asyncio; made by `deployments.loader`, one `Turns` a device, one `Turn` a loaded model's queue.
"""

import asyncio
from dataclasses import dataclass, field

from deployments.types import MONOTONIC, Clock


class Turns:
    """One device, held by one model at a time."""

    def __init__(self, clock: Clock = MONOTONIC) -> None:
        self._clock = clock
        self._waiting: list[_Waiter] = []
        self._holder: Turn | None = None
        self._is_choosing = False
        self._since = 0.0
        self._held_s = 0.0
        self._now = 0.0  # virtual time: the clock of the model that last began

    @property
    def held_s(self) -> float:
        """Seconds the device has been held in all."""
        return self._held_s + (self._clock() - self._since if self._holder is not None else 0.0)

    def of(self, key: str, weight: float = 1.0) -> "Turn":
        """Return the `async with` of one model; enter it to hold the device."""
        return Turn(self, key, weight)

    async def enter(self, turn: "Turn") -> None:
        """Wait for the device. Cancelling gives the place up."""
        if self._holder is None and not self._is_choosing:
            self._begin(turn)
            return
        waiter = _Waiter(turn, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:  # it was given the device in the same step
                self.leave(turn)
            raise

    def leave(self, turn: "Turn") -> None:
        """Give the device to whoever is furthest behind."""
        held_s = self._clock() - self._since
        self._held_s += held_s
        turn.clock += held_s / turn.weight
        self._holder = None
        if self._waiting:
            # NOTE: not at once: a queue that has more to run asks again in this very step, and must be among those
            # compared, or models with short batches would get one batch for each of their neighbours' long ones.
            self._is_choosing = True
            asyncio.get_running_loop().call_soon(self._choose)

    def _choose(self) -> None:
        self._is_choosing = False
        if self._waiting:
            # min takes the first of equals, which has waited longest.
            waiter = min(self._waiting, key=lambda w: max(w.turn.clock, self._now))
            self._waiting.remove(waiter)
            self._begin(waiter.turn)
            waiter.future.set_result(None)

    def _begin(self, turn: "Turn") -> None:
        turn.clock = self._now = max(turn.clock, self._now)
        self._holder, self._since = turn, self._clock()


@dataclass(eq=False, slots=True)
class Turn:
    """One model's turn on a device; `weight` may change at any time."""

    turns: Turns
    key: str
    weight: float = 1.0
    clock: float = 0.0  # seconds held, by weight

    async def __aenter__(self) -> None:
        await self.turns.enter(self)

    async def __aexit__(self, *_: object) -> None:
        self.turns.leave(self)


@dataclass(eq=False, slots=True)
class _Waiter:
    turn: Turn
    future: asyncio.Future[None] = field(repr=False)
