"""One model's place in a residency, and how models get there: what `deployments.residency` works with, and its `room`.

A slot is written by the residency only.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from deployments.errors import ModelUnavailable, ServeError
from deployments.spec import ModelSpec
from deployments.types import ModelState

BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Slot(Generic[T]):
    """One model in one configuration."""

    spec: ModelSpec
    state: ModelState = ModelState.UNLOADED
    model: T | None = None
    size_bytes: int = 0  # what it holds of the device's budget, or is promised
    parked_bytes: int = 0  # what it holds of the host RAM's
    estimated_bytes: int = 0  # what its files say it takes on the device
    expected_bytes: int = 0  # the same, or better: what was measured; 0 is not known yet
    peak_bytes: int = 0  # the most a batch has taken beside the weights
    n_leases: int = 0
    n_held: int = 0  # of these, those that wait for it to be READY
    last_used: float | None = None  # when its last lease ended
    n_uses: float = 0.0  # leases so far, older ones counting less (`room.Uses`)
    used_no: int = 0  # which of the residency's leases was its latest
    began: float = 0.0  # when its running load began
    load_s: float = 0.0  # measured, from disk; 0.0 is not known yet
    unpark_s: float = 0.0  # measured, from host RAM
    is_retired: bool = False  # out of the configuration: leaves as soon as nobody uses it
    error: ServeError | None = None
    n_failures: int = 0
    retry_at: float = 0.0
    task: asyncio.Task[None] | None = None  # its load or unload
    idle_timer: asyncio.TimerHandle | None = None
    base: "Slot[T] | None" = field(default=None, repr=False)  # what an adapter needs on the device
    adapters: "list[Slot[T]]" = field(default_factory=list, repr=False)  # whose base this is

    def rest_on(self, base: "Slot[T] | None") -> None:
        """Need this base from now on, and no other."""
        if self.base is not None:
            self.base.adapters.remove(self)
        if base is not None:
            base.adapters.append(self)
        self.base = base

    def back_off(self, now: float) -> None:
        """Raise its last error while its back-off lasts."""
        if self.error is not None and now < self.retry_at:
            raise self.error.after(self.retry_at - now)

    def fail(self, exc: Exception, now: float) -> None:
        """Take note of a load that failed. One that failed with its base has no back-off of its own."""
        if not isinstance(exc, ServeError):
            reason = f"{type(exc).__name__}: {exc}"
            exc = ModelUnavailable(f"model {self.spec.key!r} cannot be loaded: {reason}", reason=reason)
        if self.base is not None and self.base.state is ModelState.UNAVAILABLE:
            wait = self.base.retry_at - now
        else:
            wait = min(MAX_BACKOFF_S, BACKOFF_S * 2**self.n_failures)
            self.n_failures += 1
        self.state, self.size_bytes = ModelState.UNAVAILABLE, 0
        self.error, self.retry_at = exc.after(wait), now + wait

    @property
    def following(self) -> "list[Slot[T]]":
        """Its adapters that are on the device, or promised room there: they keep it where it is."""
        return [slot for slot in self.adapters if slot.size_bytes]

    @property
    def has_base(self) -> bool:
        """Whether it needs no base, or one that is on the device or promised room there."""
        return self.base is None or (self.base.size_bytes > 0 and self.base.state is not ModelState.UNLOADING)

    @property
    def is_unused(self) -> bool:
        """Ready, and nobody holds it; those who wait for its base do not hold it yet."""
        is_waiting = self.base is not None and self.base.state is not ModelState.READY
        return self.state is ModelState.READY and self.n_leases == (self.n_held if is_waiting else 0)

    @property
    def is_evictable(self) -> bool:
        """On the device, unused, and not pinned; and the same goes for its adapters there."""
        return (
            self.is_unused
            and (self.is_retired or not self.is_immovable)
            and all(adapter.is_unused for adapter in self.following)
        )

    @property
    def is_immovable(self) -> bool:
        """Never going to make room for another."""
        is_pinned = self.spec.pinned or any(adapter.is_immovable for adapter in self.following)
        return is_pinned and not self.is_retired


class Loader(Protocol[T]):
    """How models get into memory and out of it; injected, so that residency knows nothing of engines."""

    async def estimate(self, spec: ModelSpec) -> int:
        """Fetch the model's files and return the bytes it is going to take on the device."""

    async def load(self, spec: ModelSpec) -> T:
        """Bring it onto the device."""

    def size_bytes(self, model: T) -> int:
        """Return the bytes a loaded model takes."""

    async def unload(self, model: T) -> None:
        """Let go of it, on the device or parked."""

    def parked_bytes(self, model: T) -> int | None:
        """Return the bytes of host RAM a model would take off the device; None if it can only be unloaded."""

    async def park(self, model: T) -> None:
        """Move it off the device into host RAM."""

    async def unpark(self, model: T) -> None:
        """Bring a parked model back onto the device."""
