"""Is there room, who leaves first to make it, and how long does it take to come back. Pure; for `residency`."""

import math
from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Any, TypeVar

from deployments.errors import ModelUnavailable
from deployments.slot import Slot
from deployments.types import ModelState

S = TypeVar("S", bound=Slot[Any])
T = TypeVar("T")

_SMOOTHING = 0.3  # weight of the newest measurement
_FIRST_S = 1.0  # a load of which nothing is known
_HALVING = 4  # a use counts half after so many uses, for each model there is
_SHORTEST_S = 0.05  # nobody is asked to come back sooner


class Speeds:
    """How fast models load here, from every load so far."""

    def __init__(self) -> None:
        self._s_per_byte = 0.0

    @property
    def unknown_s(self) -> float:
        """How long a load takes of a model whose size is not known."""
        return _FIRST_S

    def loaded(self, slot: Slot[Any], seconds: float) -> None:
        """Take note of a load from disk."""
        slot.load_s = _mean(slot.load_s, seconds)
        if slot.size_bytes:
            self._s_per_byte = _mean(self._s_per_byte, seconds / slot.size_bytes)

    def unparked(self, slot: Slot[Any], seconds: float) -> None:
        """Take note of a load from host RAM."""
        slot.unpark_s = _mean(slot.unpark_s, seconds)

    def load_s(self, slot: Slot[Any]) -> float:
        """Return how long a load of this model from where it is now takes."""
        if slot.state is ModelState.PARKED and slot.unpark_s:
            return slot.unpark_s
        return slot.load_s or slot.expected_bytes * self._s_per_byte or _FIRST_S

    def wait_s(self, slot: Slot[Any], now: float) -> float:
        """Return how long somebody who comes now has to wait for this model."""
        passed = now - slot.began if slot.state is ModelState.LOADING else 0.0
        return max(self.load_s(slot) - passed, _SHORTEST_S)


def shares(slot: Slot[T], need: int) -> dict[Slot[T], int]:
    """Return who needs how much of the budget for a slot to have `need`: an adapter is of no use without its base."""
    if slot.base is None:
        return {slot: need}
    return {slot: need, slot.base: slot.base.size_bytes or slot.base.expected_bytes}


def fits(slots: Collection[Slot[Any]], wanted: Mapping[Slot[Any], int], spare: int, budget: int) -> bool:
    """Return whether the budget holds these shares and `spare` beside what the others hold or are promised."""
    return sum(s.size_bytes for s in slots if s not in wanted) + sum(wanted.values()) + spare <= budget


def refuse_impossible(slots: Collection[Slot[Any]], slot: Slot[Any], need: int, budget: int) -> None:
    """Raise ModelUnavailable if `need` bytes do not fit even beside the pinned models alone."""
    wanted = shares(slot, need)
    pinned = sum(s.size_bytes for s in slots if s not in wanted and s.is_immovable)
    if (all_bytes := sum(wanted.values())) + pinned > budget:
        reason = f"it needs {all_bytes} bytes; the budget is {budget}, of which pinned models hold {pinned}"
        if slot.base is not None:
            reason = reason.replace("bytes;", f"bytes, base {slot.base.spec.key!r} included;", 1)
        raise ModelUnavailable(f"model {slot.spec.key!r} does not fit: {reason}", reason=reason)


class Uses:
    """How often each model is used, against all `models`; time is counted in uses, so that quiet hours age nobody."""

    def __init__(self, models: Sized) -> None:
        self._models = models
        self._n = 0

    def note(self, slot: Slot[Any]) -> None:
        """Take note of a lease that begins."""
        self._n += 1
        slot.n_uses = 1.0 + slot.n_uses * 0.5 ** ((self._n - slot.used_no) / self._halving)
        slot.used_no = self._n

    def share(self, slot: Slot[Any]) -> float:
        """Return a model's expected share of the uses to come: as in the past, but no more than its absence allows."""
        away = max(self._n - slot.used_no, 1)
        past: float = slot.n_uses * 0.5 ** (away / self._halving) * math.log(2) / self._halving
        return min(past, 1 / away)

    @property
    def _halving(self) -> int:
        return _HALVING * max(len(self._models), 1)


def first_to_go(idle: Sequence[S], kept: Collection[str], uses: Uses) -> S | None:
    """Return the slot whose absence costs least: retired ones first, kept ones last, else the lowest worth.

    A model's worth for each byte it holds is what its reload would cost, times how often it would have to be paid: its
    share of the uses. (After GreedyDual-Size-Frequency, Cherkasova, 1998, with counts that age: with Zipf's popularity
    and memory for a fifth of the models it takes three quarters of the loads that the idle time alone does, where the
    best that is possible without knowing the future takes 72 %: `benchmarks/eviction_sim.py`.)
    """
    return min(idle, key=lambda slot: (not slot.is_retired, _is_kept(slot, kept), _worth(slot, uses)), default=None)


def _is_kept(slot: Slot[Any], kept: Collection[str]) -> bool:
    """Return whether a model is kept, or the base of an adapter that is."""
    return any(one.spec.key in kept for one in (slot, *slot.following))


def _worth(slot: Slot[Any], uses: Uses) -> float:
    reload_s = slot.unpark_s or slot.load_s or _FIRST_S
    size = slot.size_bytes or slot.parked_bytes or 1
    return reload_s * uses.share(slot) / size


def _mean(before: float, newest: float) -> float:
    return newest if before == 0.0 else before + _SMOOTHING * (newest - before)
