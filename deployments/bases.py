"""Which base an adapter rests on. The part of a residency that ties the two: where an adapter is, its base is too.

An adapter on the device, or promised room there, keeps its base where it is; one that nobody uses leaves with its base.
Which model is an adapter's base is asked anew at each use, for a base may be replaced by another configuration of it.
Used by `deployments.residency` only; `deployments.models` says which base is in force.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from deployments.device import Device
from deployments.errors import ServeError
from deployments.slot import Slot
from deployments.spec import ModelSpec
from deployments.types import ModelState

T = TypeVar("T")


class Bases(Generic[T]):
    """Ties slots together; `slot_of` gives a configuration's slot, `progress` brings one a step nearer to its load.

    `left` is told of a base that an adapter rests on no more.
    """

    def __init__(
        self,
        slot_of: Callable[[ModelSpec], Slot[T]],
        progress: Callable[[Slot[T]], Awaitable[None]],
        left: Callable[[Slot[T]], None],
    ) -> None:
        self.base_of: Callable[[ModelSpec], ModelSpec | None] = lambda _: None  # in force now; may raise a ServeError
        self.check: Callable[[T, T], None] = lambda *_: None  # whether a base takes an adapter; raises a ServeError
        self._slot_of = slot_of
        self._progress = progress
        self._left = left

    def lacking(self, slot: Slot[T]) -> Slot[T] | None:
        """Return what is to be loaded next for a model to answer: itself, or its base; None if it can.

        Raises:
            ServeError: its base is not served now.
        """
        if slot.spec.base is not None and slot.task is None:
            self._rest(slot)
        if slot.state is not ModelState.READY:
            return slot
        return slot.base if slot.base is not None and slot.base.state is not ModelState.READY else None

    async def take(self, device: Device[T], slot: Slot[T], victims: list[Slot[T]]) -> None:
        """Have room for a slot, and its base on the device if it needs one: its share of the room keeps that there."""
        while True:
            while slot.base is not None and not slot.base.expected_bytes:
                await self._progress(slot.base)  # finds out how large it is
            await device.take(slot, slot.expected_bytes, victims)
            while slot.base is not None and slot.base.state is not ModelState.READY and slot.size_bytes:
                await self._progress(slot.base)
            if slot.size_bytes >= slot.expected_bytes:
                return

    def check_loaded(self, slot: Slot[T], model: T) -> None:
        """Check a model that has just been loaded against its base, if it needs one. Raises ServeError."""
        if slot.base is not None and slot.base.model is not None:
            self.check(slot.base.model, model)

    def to_load(self, slot: Slot[T]) -> list[Slot[T]]:
        """Return what somebody who asks for a model waits for, if it is not here."""
        if slot.base is None or slot.base.state is ModelState.READY:
            return [slot]
        return [slot.base, slot]

    def move_adapters(self, base: Slot[T]) -> None:
        """Let adapters on the device rest on the base in force, if that is another one by now, and ready."""
        for adapter in base.following:
            if adapter.state is ModelState.READY:
                with suppress(ServeError):
                    self._rest(adapter, only_ready=True)

    def _rest(self, slot: Slot[T], *, only_ready: bool = False) -> None:
        spec = self.base_of(slot.spec)
        base = None if spec is None else self._slot_of(spec)
        if base is not slot.base and not (only_ready and (base is None or base.state is not ModelState.READY)):
            before = slot.base
            slot.rest_on(base)
            if before is not None:
                self._left(before)
