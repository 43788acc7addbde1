"""Who is in memory: the byte budget of one device, leases, single-flight loads, eviction, back-off.

States of a slot (one per model and configuration):

    UNLOADED ──load──▶ LOADING ──▶ READY ──evict──▶ UNLOADING ──▶ UNLOADED
                          └─ fails ─▶ UNAVAILABLE (until its back-off ends) ─▶ LOADING

A slot in use (leased) or pinned is never evicted. Room is made before a load, only for a model whose files have been
fetched and sized, and all at once, so that two loads never wait for each other. Pure asyncio; used by
`deployments.models`.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from deployments.errors import ModelUnavailable, ServeError
from deployments.spec import ModelSpec
from deployments.types import MONOTONIC, Clock, ModelState

BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0

T = TypeVar("T")


class Loader(Protocol[T]):
    """How models get into memory and out of it; injected, so that residency knows nothing of engines."""

    async def estimate(self, spec: ModelSpec) -> int:
        """Fetch the model's files and return the bytes it is going to take."""

    async def load(self, spec: ModelSpec) -> T:
        """Bring it into memory."""

    def size_bytes(self, model: T) -> int:
        """Return the bytes a loaded model takes."""

    async def unload(self, model: T) -> None:
        """Let go of it."""


@dataclass(slots=True)
class Slot(Generic[T]):
    """One model's place: what is known of it, in memory or not."""

    spec: ModelSpec
    state: ModelState = ModelState.UNLOADED
    model: T | None = None
    size_bytes: int = 0  # what it holds of the budget
    n_leases: int = 0
    last_used: float = 0.0
    is_retired: bool = False  # out of the configuration: leaves as soon as nobody uses it
    error: ServeError | None = None
    n_failures: int = 0
    retry_at: float = 0.0
    task: asyncio.Task[None] | None = None

    @property
    def is_evictable(self) -> bool:
        """In memory, unused, and not pinned."""
        return self.state is ModelState.READY and self.n_leases == 0 and (self.is_retired or not self.spec.pinned)


class Residency(Generic[T]):
    """Keeps models in memory within `budget_bytes`."""

    def __init__(self, budget_bytes: int, loader: Loader[T], max_loads: int = 2, clock: Clock = MONOTONIC) -> None:
        self.budget_bytes = budget_bytes
        self._loader = loader
        self._clock = clock
        self._slots: dict[tuple[str, str], Slot[T]] = {}
        self._loads = asyncio.Semaphore(max_loads)
        self._room = asyncio.Lock()  # one load at a time waits for room, so that a large one is not starved
        self._changed = asyncio.Event()
        self.kept: frozenset[str] = frozenset()  # model keys that are evicted only if nobody else can be

    @property
    def used_bytes(self) -> int:
        """Bytes held or promised; never above the budget."""
        return sum(slot.size_bytes for slot in self._slots.values())

    def models(self) -> list[T]:
        """Return the models in memory."""
        return [slot.model for slot in self._slots.values() if slot.model is not None]

    def peek(self, spec: ModelSpec) -> Slot[T] | None:
        """Return the slot of exactly this configuration of a model, if it was ever asked for."""
        return self._slots.get((spec.key, spec.digest))

    def _slot(self, spec: ModelSpec) -> Slot[T]:
        slot = self.peek(spec)
        if slot is None:
            slot = self._slots[spec.key, spec.digest] = Slot(spec)
        slot.spec = spec  # what needs no reload (pinned, limits) may have changed
        return slot

    @asynccontextmanager
    async def lease(self, spec: ModelSpec) -> AsyncIterator[T]:
        """Hold a model in memory for the length of the `async with`, loading it first if need be.

        Raises:
            ModelUnavailable: it cannot be loaded; `reason` and perhaps `retry_after_s` say more.
        """
        slot = self._slot(spec)
        slot.n_leases += 1
        try:
            while slot.model is None or slot.state is not ModelState.READY:
                await self._progress(slot)
            yield slot.model
        finally:
            slot.n_leases -= 1
            slot.last_used = self._clock()
            self._tidy(slot)

    def retire(self, spec: ModelSpec) -> None:
        """Let a model go for good once its last lease ends."""
        if (slot := self.peek(spec)) is not None:
            slot.is_retired = True
            self._tidy(slot)

    async def evict(self, spec: ModelSpec) -> bool:
        """Unload a model now if it is in memory and unused; return whether it was."""
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
        for slot in self._slots.values():
            if slot.model is not None:
                await self._unload(slot)

    async def _progress(self, slot: Slot[T]) -> None:
        """Wait for the slot's running task, or start the next one. Shielded: one caller leaving stops nobody's load."""
        if slot.task is None:
            if slot.error is not None and self._clock() < slot.retry_at:
                raise _again_later(slot.error, slot.retry_at - self._clock())
            slot.task = self._spawn(slot, self._load(slot))
        await asyncio.shield(slot.task)
        if slot.error is not None and slot.task is None:
            raise slot.error

    def _spawn(self, slot: Slot[T], work: Awaitable[None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            finally:
                slot.task = None
                self._tidy(slot)

        # NOTE: an empty context, or the load would be cancelled with the request that happened to ask first.
        return asyncio.get_running_loop().create_task(run(), context=contextvars.Context())

    async def _load(self, slot: Slot[T]) -> None:
        slot.state, slot.error = ModelState.LOADING, None
        try:
            estimate = await self._loader.estimate(slot.spec)
            await self._make_room(slot, estimate)
            async with self._loads:
                model = await self._loader.load(slot.spec)
            await self._settle(slot, model)
        except asyncio.CancelledError:
            slot.state, slot.size_bytes = ModelState.UNLOADED, 0
            raise
        except Exception as exc:
            self._failed(slot, exc)
        else:
            slot.n_failures, slot.last_used, slot.state = 0, self._clock(), ModelState.READY

    async def _settle(self, slot: Slot[T], model: T) -> None:
        """Replace the estimate by the measured size; give the model back if there is no room for the difference."""
        measured = self._loader.size_bytes(model)
        try:
            if measured > slot.size_bytes:
                await self._make_room(slot, measured)
        except ServeError:
            await self._loader.unload(model)
            raise
        slot.model, slot.size_bytes = model, measured

    async def _make_room(self, slot: Slot[T], need: int) -> None:
        """Raise the slot's share of the budget to `need`, evicting what is idle longest, waiting for leases to end."""
        async with self._room:
            while True:
                others = self.used_bytes - slot.size_bytes
                if others + need <= self.budget_bytes:
                    slot.size_bytes = need
                    return
                self._refuse_impossible(slot, need)
                idle = [s for s in self._slots.values() if s.is_evictable]
                if idle:
                    victim = min(idle, key=lambda s: (not s.is_retired, s.last_used))
                    await asyncio.shield(self._start_unload(victim))
                else:
                    self._changed.clear()
                    await self._changed.wait()

    def _refuse_impossible(self, slot: Slot[T], need: int) -> None:
        pinned = sum(s.size_bytes for s in self._slots.values() if s is not slot and s.spec.pinned and not s.is_retired)
        if need + pinned > self.budget_bytes:
            reason = f"it needs {need} bytes; the budget is {self.budget_bytes}, of which pinned models hold {pinned}"
            raise ModelUnavailable(f"model {slot.spec.key!r} does not fit: {reason}", reason=reason)

    def _start_unload(self, slot: Slot[T]) -> asyncio.Task[None]:
        slot.state = ModelState.UNLOADING
        slot.task = self._spawn(slot, self._unload(slot))
        return slot.task

    async def _unload(self, slot: Slot[T]) -> None:
        model, slot.model = slot.model, None
        try:
            if model is not None:
                await self._loader.unload(model)
        finally:
            slot.size_bytes, slot.state = 0, ModelState.UNLOADED

    def _failed(self, slot: Slot[T], exc: Exception) -> None:
        if not isinstance(exc, ServeError):
            reason = f"{type(exc).__name__}: {exc}"
            exc = ModelUnavailable(f"model {slot.spec.key!r} cannot be loaded: {reason}", reason=reason)
        wait = min(MAX_BACKOFF_S, BACKOFF_S * 2**slot.n_failures)
        slot.n_failures += 1
        slot.state, slot.size_bytes = ModelState.UNAVAILABLE, 0
        slot.error, slot.retry_at = _again_later(exc, wait), self._clock() + wait

    def _tidy(self, slot: Slot[T]) -> None:
        """Wake loads that wait for room, and drop a retired slot that nobody uses."""
        self._changed.set()
        if not slot.is_retired or slot.n_leases or slot.task:
            return
        if slot.state is ModelState.READY:
            self._start_unload(slot)
        else:
            self._slots.pop((slot.spec.key, slot.spec.digest), None)


def _again_later(error: ServeError, wait_s: float) -> ServeError:
    details = {**error.details, "retry_after_s": round(wait_s, 3)}
    return type(error)(error.message, **details)
