"""One model's place in a residency, and how models get there: what `deployments.residency` works with, and its `room`.

A slot is written by the residency only.
"""

import asyncio
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from deployments.errors import ServeError
from deployments.spec import ModelSpec
from deployments.types import ModelState

T = TypeVar("T")


@dataclass(slots=True)
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

    @property
    def is_evictable(self) -> bool:
        """On the device, unused, and not pinned."""
        return self.state is ModelState.READY and self.n_leases == 0 and (self.is_retired or not self.spec.pinned)

    @property
    def is_immovable(self) -> bool:
        """Never going to make room for another."""
        return self.spec.pinned and not self.is_retired


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
