"""Models that nobody has used for their `idle_unload_s` leave the device. Used by `deployments.residency` only."""

import asyncio
from collections.abc import Callable
from typing import Any

from deployments.slot import Slot
from deployments.types import Clock


class IdleWatch:
    """One timer a slot, set anew when it fires too early, so that a request costs nothing; then calls `unload`."""

    def __init__(self, unload: Callable[[Slot[Any]], object], clock: Clock) -> None:
        self._unload = unload
        self._clock = clock

    def watch(self, slot: Slot[Any]) -> None:
        """See to it that a slot leaves when its time has come, if it is to and may."""
        limit_s = slot.spec.idle_unload_s
        if limit_s is not None and slot.is_evictable and slot.idle_timer is None:
            slot.idle_timer = asyncio.get_running_loop().call_later(limit_s, self._fire, slot)

    def forget(self, slot: Slot[Any]) -> None:
        """Stop watching: its limit may be another one now."""
        if slot.idle_timer is not None:
            slot.idle_timer.cancel()
            slot.idle_timer = None

    def _fire(self, slot: Slot[Any]) -> None:
        slot.idle_timer = None
        limit_s = slot.spec.idle_unload_s
        if limit_s is None or not slot.is_evictable:
            return  # the end of its lease watches it again
        left_s = (slot.last_used or 0.0) + limit_s - self._clock()
        if left_s > 0:
            slot.idle_timer = asyncio.get_running_loop().call_later(left_s, self._fire, slot)
        else:
            self._unload(slot)
