"""The way down and up again: device, host RAM, disk. The part of a residency that moves what it was told to move.

A model that leaves the device is parked in host RAM if it can be and `ram_bytes` has room, for which parked models of
less worth are dropped; else it leaves memory. Used by `deployments.residency` only, which decides who moves and when.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Generic, TypeVar

from deployments.room import Speeds, Uses, first_to_go
from deployments.slot import Loader, Slot
from deployments.types import Clock, ModelState

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Tiers(Generic[T]):
    """Moves the models in `slots`; `spawn` runs work as a slot's own task, so that nobody else moves it meanwhile."""

    def __init__(
        self,
        ram_bytes: int,
        loader: Loader[T],
        slots: Mapping[tuple[str, str], Slot[T]],
        spawn: Callable[[Slot[T], Callable[[], Awaitable[None]]], asyncio.Task[None]],
        uses: Uses,
        clock: Clock,
    ) -> None:
        self.ram_bytes = ram_bytes
        self._uses = uses
        self._loader = loader
        self._slots = slots
        self._spawn = spawn
        self._clock = clock
        self.speeds = Speeds()
        self.max_loads = 2  # models that may load from disk at once
        self._n_loading = 0
        self._loaded = asyncio.Event()

    @property
    def parked_bytes(self) -> int:
        """Bytes of host RAM that parked models take; never above `ram_bytes`."""
        return sum(slot.parked_bytes for slot in self._slots.values())

    async def down(self, slot: Slot[T], kept: Collection[str]) -> None:
        """Take a model off the device, into host RAM or out of memory."""
        model = slot.model
        need = None if model is None or slot.is_retired else self._loader.parked_bytes(model)
        if model is not None and need is not None and await self._make_room(need, kept):
            slot.parked_bytes = need
            try:
                await self._loader.park(model)
            except Exception:
                logger.exception("model %s cannot be parked; it is unloaded", slot.spec.key)
            else:
                slot.size_bytes, slot.state = 0, ModelState.PARKED
                return
        await self.drop(slot)
        slot.size_bytes, slot.state = 0, ModelState.UNLOADED

    async def load(self, slot: Slot[T]) -> T:
        """Load a model from disk, when fewer than `max_loads` others do."""
        while self._n_loading >= self.max_loads:
            self._loaded.clear()
            await self._loaded.wait()
        self._n_loading += 1
        began = self._clock()
        try:
            model = await self._loader.load(slot.spec)
        finally:
            self._n_loading -= 1
            self._loaded.set()
        self.speeds.loaded(slot, self._clock() - began)
        return model

    async def up(self, slot: Slot[T]) -> bool:
        """Bring a parked model back to the device; return whether it worked, else it has been dropped."""
        model, began = slot.model, self._clock()
        if model is None:
            return False
        try:
            await self._loader.unpark(model)
        except Exception:
            logger.exception("model %s did not come back from host RAM; it is loaded anew", slot.spec.key)
            await self.drop(slot)
            return False
        slot.parked_bytes = 0
        slot.size_bytes = slot.expected_bytes = self._loader.size_bytes(model)
        self.speeds.unparked(slot, self._clock() - began)
        return True

    async def drop(self, slot: Slot[T]) -> None:
        """Let go of a model, wherever it is."""
        model, slot.model = slot.model, None
        try:
            if model is not None:
                await self._loader.unload(model)
        finally:
            slot.parked_bytes = 0

    async def _make_room(self, need: int, kept: Collection[str]) -> bool:
        """Drop parked models until `need` fits; return False, and drop nobody, where it never would."""
        if need > self.ram_bytes:
            return False
        while self.parked_bytes + need > self.ram_bytes:
            parked = [s for s in self._slots.values() if s.state is ModelState.PARKED and s.task is None]
            victim = first_to_go(parked, kept, self._uses)
            if victim is None:
                return False
            victim.state = ModelState.UNLOADING
            victim.task = self._spawn(victim, partial(self._forget, victim))
            await asyncio.shield(victim.task)
        return True

    async def _forget(self, slot: Slot[T]) -> None:
        try:
            await self.drop(slot)
        finally:
            slot.state = ModelState.UNLOADED
