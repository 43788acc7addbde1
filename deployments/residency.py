"""Who is in memory: budgets in bytes for the device and for host RAM, leases, single-flight loads, eviction, back-off.

States of a slot (one per model and configuration):

    UNLOADED ──load──▶ LOADING ──▶ READY ──evict──▶ UNLOADING ──▶ PARKED (in host RAM) or UNLOADED (on disk)
                          └─ fails ─▶ UNAVAILABLE (until its back-off ends) ─▶ LOADING

A slot in use (leased) or pinned is never evicted, nor the base of such an adapter (`deployments.bases`). Room is made
once files have been fetched and sized, and all at once, so that two loads never wait for each other; what was evicted
for a load that fails comes back. Who holds how much: `device.py`; where a model goes: `tiers.py`. Used by `models.py`.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic, TypeVar

from deployments.bases import Bases
from deployments.device import Device
from deployments.errors import ModelLoading
from deployments.idle import IdleWatch
from deployments.room import Uses
from deployments.slot import Loader, Slot
from deployments.spec import ModelSpec
from deployments.tiers import Tiers
from deployments.types import MONOTONIC, Clock, ModelState

T = TypeVar("T")


class Residency(Generic[T]):
    """Keeps models on a device within `budget_bytes`, and those it takes off it in host RAM within `ram_bytes`.

    `max_held` requests may wait for one load (0: any number); it may change at any time.
    """

    def __init__(
        self,
        budget_bytes: int,
        loader: Loader[T],
        max_loads: int = 2,
        clock: Clock = MONOTONIC,
        ram_bytes: int = 0,
        max_held: int = 0,
    ) -> None:
        self.max_held = max_held
        self._loader = loader
        self._clock = clock
        self._slots: dict[tuple[str, str], Slot[T]] = {}
        self._uses = Uses(self._slots)
        self.device: Device[T] = Device(budget_bytes, self._slots, self._start_unload, self._uses, clock)
        self.tiers: Tiers[T] = Tiers(ram_bytes, loader, self._slots, self._spawn, self._uses, clock)
        self.tiers.max_loads = max_loads
        self.bases: Bases[T] = Bases(self._slot, self._progress, self._tidy)
        self._idle = IdleWatch(self._start_unload, clock)

    @property
    def used_bytes(self) -> int:
        """Bytes of weights held or promised on the device; never above its budget."""
        return self.device.used_bytes

    def slots(self) -> list[Slot[T]]:
        """Return what is known of every model that was ever asked for."""
        return list(self._slots.values())

    def models(self) -> list[T]:
        """Return the models in memory, parked ones too."""
        return [slot.model for slot in self._slots.values() if slot.model is not None]

    def peek(self, spec: ModelSpec) -> Slot[T] | None:
        """Return the slot of exactly this configuration of a model, if it was ever asked for."""
        return self._slots.get((spec.key, spec.digest))

    def wait_s(self, spec: ModelSpec) -> float:
        """Return how long a request that comes now waits for this model's load, by those measured so far."""
        now, slot = self._clock(), self.peek(spec) or Slot(spec)
        return sum(self.tiers.speeds.wait_s(one, now) for one in self.bases.to_load(slot))

    @asynccontextmanager
    async def lease(self, spec: ModelSpec) -> AsyncIterator[T]:
        """Hold a model on the device for the length of the `async with`, loading it first if need be.

        Raises:
            ModelUnavailable: it cannot be loaded, or too many wait for it already; `reason` and perhaps
                `retry_after_s` say more.
        """
        slot = self._slot(spec)
        self._uses.note(slot)
        slot.n_leases += 1
        try:
            if self.bases.lacking(slot):
                await self._until_ready(slot)
            assert slot.model is not None  # noqa: S101 - narrows for mypy: READY says so
            yield slot.model
        finally:
            slot.n_leases -= 1
            slot.last_used = self._clock()
            if slot.base is not None:
                slot.base.last_used = slot.last_used
            self._tidy(slot)

    def adopt(self, spec: ModelSpec, *, is_retired: bool = False) -> T | None:
        """Take over a configuration that needs no load; return the model if it is in memory."""
        if (slot := self.peek(spec)) is None:
            return None
        slot.spec, slot.is_retired = spec, is_retired
        self._idle.forget(slot)
        self._tidy(slot)
        return slot.model

    def retire(self, spec: ModelSpec) -> None:
        """Let a model go for good once its last lease ends."""
        if (slot := self.peek(spec)) is not None:
            self.bases.move_adapters(slot)
        self.adopt(spec, is_retired=True)

    def learn_peak(self, spec: ModelSpec, peak_bytes: int) -> None:
        """Take note of what a batch of a model took beside the weights."""
        if (slot := self.peek(spec)) is not None:
            self.device.learn_peak(slot, peak_bytes)

    async def evict(self, spec: ModelSpec) -> bool:
        """Take a model off the device now if it is there and unused; return whether it was."""
        slot = self._slot(spec)
        if not slot.is_evictable:
            return False
        await asyncio.shield(self._start_unload(slot))
        return True

    async def aclose(self) -> None:
        """Cancel loads and unload everything."""
        tasks = [slot.task for slot in self._slots.values() if slot.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in sorted(self._slots.values(), key=lambda slot: slot.base is None):  # adapters first
            self._idle.forget(slot)
            await self.tiers.drop(slot)
            slot.size_bytes, slot.state = 0, ModelState.UNLOADED

    def _slot(self, spec: ModelSpec) -> Slot[T]:
        slot = self.peek(spec)
        if slot is None:
            slot = self._slots[spec.key, spec.digest] = Slot(spec)
        slot.spec = spec  # what needs no reload (pinned, limits) may have changed
        return slot

    async def _until_ready(self, slot: Slot[T]) -> None:
        if self.max_held and slot.n_held >= self.max_held:
            reason = f"it is being loaded, and {slot.n_held} requests wait for it already"
            error = ModelLoading(f"model {slot.spec.key!r}: {reason}", reason=reason)
            raise error.after(self.tiers.speeds.wait_s(slot, self._clock()))
        slot.n_held += 1
        try:
            while (missing := self.bases.lacking(slot)) is not None:
                await self._progress(missing)
        finally:
            slot.n_held -= 1

    async def _progress(self, slot: Slot[T]) -> None:
        """Wait for the slot's running task, or start the next one. Shielded: one caller leaving stops nobody's load."""
        if slot.task is None:
            slot.back_off(self._clock())
            slot.task = self._spawn(slot, partial(self._load, slot))
        await asyncio.shield(slot.task)
        if slot.error is not None and slot.task is None:
            raise slot.error

    def _spawn(self, slot: Slot[T], work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work()
            finally:
                slot.task = None
                self._tidy(slot)

        # NOTE: an empty context, or the load would be cancelled with the request that happened to ask first.
        return asyncio.get_running_loop().create_task(run(), context=contextvars.Context())

    async def _load(self, slot: Slot[T]) -> None:
        slot.state, slot.error, slot.began = ModelState.LOADING, None, self._clock()
        victims: list[Slot[T]] = []
        try:
            if not await self._from_ram(slot, victims):
                await self._from_disk(slot, victims)
        except asyncio.CancelledError:
            slot.state, slot.size_bytes = ModelState.UNLOADED, 0
            raise
        except Exception as exc:
            await self.tiers.drop(slot)  # it may still be parked, and did not fit any more
            slot.fail(exc, self._clock())
            self._restore(victims)
        else:
            slot.n_failures, slot.last_used, slot.state = 0, self._clock(), ModelState.READY

    async def _from_ram(self, slot: Slot[T], victims: list[Slot[T]]) -> bool:
        if slot.model is None:
            return False
        await self.bases.take(self.device, slot, victims)
        return await self.tiers.up(slot)

    async def _from_disk(self, slot: Slot[T], victims: list[Slot[T]]) -> None:
        estimate = await self._loader.estimate(slot.spec)  # each time: it checks the files as well
        if estimate != slot.estimated_bytes:  # else what was measured of these files is the better guess
            slot.estimated_bytes = slot.expected_bytes = estimate
        while True:
            await self.bases.take(self.device, slot, victims)
            if await self._settle(slot, await self.tiers.load(slot), victims):
                return
            for one in (slot, *slot.following):  # larger than its files said, and all else is in use: again, with the
                one.size_bytes = 0  # size now known, and without the room that adapters hold meanwhile

    async def _settle(self, slot: Slot[T], model: T, victims: list[Slot[T]]) -> bool:
        """Replace the estimate by the measured size; else, without room for the difference, give the model back."""
        slot.expected_bytes = measured = self._loader.size_bytes(model)
        try:
            self.bases.check_loaded(slot, model)
            if await self.device.grow(slot, measured, victims):
                slot.model, slot.size_bytes = model, measured
        finally:
            if slot.model is None:
                await self._loader.unload(model)
        return slot.model is not None

    def _start_unload(self, slot: Slot[T]) -> asyncio.Task[None]:
        followers = [self._start_unload(adapter) for adapter in slot.following]
        slot.state = ModelState.UNLOADING
        slot.task = self._spawn(slot, partial(self._unload, slot, followers))
        return slot.task

    async def _unload(self, slot: Slot[T], followers: Sequence[asyncio.Task[None]]) -> None:
        await asyncio.gather(*followers)
        await self.tiers.down(slot, self.device.kept)

    def _restore(self, victims: list[Slot[T]]) -> None:
        """Load again what was evicted for a load that failed, as far as it fits without evicting others."""
        for victim in victims:
            is_out = victim.state in (ModelState.UNLOADED, ModelState.PARKED) and victim.task is None
            may_come = is_out and victim.has_base and not victim.is_retired
            if may_come and self.device.has_room(victim, victim.expected_bytes):
                victim.size_bytes = victim.expected_bytes  # promised now, so that the next one sees it
                victim.task = self._spawn(victim, partial(self._load, victim))

    def _tidy(self, slot: Slot[T]) -> None:
        """Wake loads that wait for room; let a retired slot go that nobody uses; watch an idle one."""
        self.device.changed.set()
        base = slot.base
        if not slot.n_leases and slot.task is None and not any(adapter.task for adapter in slot.adapters):
            if slot.is_retired and slot.model is None:
                slot.rest_on(None)
                if self.peek(slot.spec) is slot:  # else it has left before, and the same configuration is back
                    del self._slots[slot.spec.key, slot.spec.digest]
            elif slot.is_retired and (slot.is_evictable or slot.state is ModelState.PARKED):
                self._start_unload(slot)
            elif slot.spec.key not in self.device.kept:
                self._idle.watch(slot)
        if base is not None:
            self._tidy(base)
