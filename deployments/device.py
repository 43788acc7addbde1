"""Who holds how much of one device's budget, and who makes room for whom. The part of a residency that counts bytes.

The budget is never exceeded by weights, held or promised. Beside them, room is kept for the largest batch: one runs at
a time, so it is the largest peak of any model on the device. Used by `deployments.residency` only.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from deployments.room import Uses, first_to_go, fits, refuse_impossible, shares
from deployments.slot import Slot
from deployments.types import Clock, ModelState

T = TypeVar("T")


class Device(Generic[T]):
    """Shares of `budget_bytes` among `slots`; `unload` starts taking an idle one off the device."""

    def __init__(
        self,
        budget_bytes: int,
        slots: Mapping[tuple[str, str], Slot[T]],
        unload: Callable[[Slot[T]], asyncio.Task[None]],
        uses: Uses,
        clock: Clock,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.kept: frozenset[str] = frozenset()  # model keys that are evicted only if nobody else can be
        self.changed = asyncio.Event()
        self._slots = slots
        self._unload = unload
        self._uses = uses
        self._clock = clock
        self._loads: list[Slot[T]] = []  # that want room: the first waits for it, so that a large one is not starved

    @property
    def used_bytes(self) -> int:
        """Bytes of weights held or promised."""
        return sum(slot.size_bytes for slot in self._slots.values())

    @property
    def peak_bytes(self) -> int:
        """The most a batch of any model here has taken beside the weights."""
        return max((slot.peak_bytes for slot in self._slots.values() if slot.size_bytes), default=0)

    def has_room(self, slot: Slot[T], need: int) -> bool:
        """Return whether `need` bytes fit for a slot as it is now."""
        return fits(self._slots.values(), {slot: need}, 0, self.budget_bytes)

    async def change(self) -> None:
        """Wait until anything may have changed."""
        self.changed.clear()
        await self.changed.wait()

    async def take(self, slot: Slot[T], need: int, victims: list[Slot[T]]) -> None:
        """Raise a slot's share to `need`, evicting who should go first, waiting for leases to end.

        An adapter's base that is not on the device gets its share in the same moment, to be loaded next: adapters of
        two bases would else take the room from each other for ever. Adds whom it evicted to `victims`.

        Raises:
            ModelUnavailable: it does not fit even beside the pinned models alone, or its base failed a moment ago.
        """
        self._loads.append(slot)
        try:
            # NOTE: looked at again at each change: one of its adapters may promise a base its room while it waits.
            while slot.size_bytes < need or not slot.has_base:
                if self._loads[0] is not slot:
                    await self.change()
                else:
                    await self._raise(slot, need, victims)
        finally:
            self._loads.remove(slot)
            self.changed.set()

    async def _raise(self, slot: Slot[T], need: int, victims: list[Slot[T]]) -> None:
        """Take one step towards a larger share: have it, evict somebody, or wait for a change."""
        if slot.base is not None:
            slot.base.back_off(self._clock())
            if slot.base.state is ModelState.UNLOADING:
                await self.change()
                return
        wanted, victim = shares(slot, need), self._victim(sparing=slot)
        # NOTE: idle models leave for the activations' sake as well, but nobody waits or is refused for it: a
        # peak is that of the largest batch so far, and must not keep a model out whose weights fit.
        spare = max(self.peak_bytes, slot.peak_bytes) if victim else 0
        if fits(self._slots.values(), wanted, spare, self.budget_bytes):
            for one, share in wanted.items():
                one.size_bytes = share
            return
        refuse_impossible(self._slots.values(), slot, need, self.budget_bytes)
        if victim is None:
            await self.change()
        else:
            victims += [victim, *victim.following]
            await asyncio.shield(self._unload(victim))

    async def grow(self, slot: Slot[T], need: int, victims: list[Slot[T]]) -> bool:
        """Raise the share of a model that turned out larger than estimated; return whether idle models had the room.

        NOTE: it must not wait for leases. Whoever waits for room may wait for this very model to become evictable.
        """
        while not self.has_room(slot, need):
            refuse_impossible(self._slots.values(), slot, need, self.budget_bytes)
            victim = self._victim(sparing=slot)
            if victim is None:
                return False
            victims += [victim, *victim.following]
            await asyncio.shield(self._unload(victim))
        slot.size_bytes = need
        return True

    def learn_peak(self, slot: Slot[T], peak_bytes: int) -> None:
        """Take note of what a batch took; more than ever before may cost idle models their place."""
        if peak_bytes <= slot.peak_bytes:
            return
        slot.peak_bytes = peak_bytes
        excess = self.used_bytes + self.peak_bytes - self.budget_bytes
        while excess > 0 and (victim := self._victim(sparing=slot)) is not None:
            excess -= sum(one.size_bytes for one in (victim, *victim.following))
            self._unload(victim)

    def _victim(self, sparing: Slot[T]) -> Slot[T] | None:
        spared = (sparing, sparing.base)
        idle = [slot for slot in self._slots.values() if slot.is_evictable and slot not in spared]
        return first_to_go(idle, self.kept, self._uses)
