"""Counters that limits take from: leaky rates, calendar windows, permits. The embedded store; Redis has the same rules.

    rate     `used` leaks away at `per_s`; a take fits while used + cost <= limit
    window   a count under a key that names its window, so the next window starts empty
    permits  how many are out; given back one by one

A demand takes from all of its counters or from none. Time is passed in; called by `limits.py` only.
"""

import math
from collections.abc import Awaitable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from deployments.types import MONOTONIC, Clock

_SWEEP_S = 60.0


class Kind(StrEnum):
    """How a counter is refilled."""

    RATE = "rate"
    WINDOW = "window"
    PERMITS = "permits"


class Take(NamedTuple):  # NOTE: several are made a request, and a frozen dataclass takes three times as long
    """A wish to take `cost` from one counter. `per_s` refills a rate; `ends_in_s` is how long a window still runs."""

    key: str
    kind: Kind
    limit: float
    cost: float
    per_s: float = 0.0
    ends_in_s: float = 0.0


class Verdict(NamedTuple):
    """Whether all takes fitted; else which did not, and how long until it would (inf: never).

    `remaining` is what each counter has left afterwards.
    """

    remaining: Sequence[float]
    refused: int | None = None
    wait_s: float = 0.0


class Store(Protocol):
    """Where counters live."""

    def take(self, takes: Sequence[Take], permit: str, lease_s: float) -> Awaitable[Verdict]:
        """Take from all or none; a permit not given back is lost after `lease_s`. Raises StoreFailure."""

    def settle(self, takes: Sequence[Take], permit: str) -> None:
        """Correct what was taken by `cost` (may be negative), whatever is left; give the permits back. Never waits."""


class StoreFailure(Exception):
    """The counters cannot be reached."""


class EmbeddedStore:
    """Counters of this process."""

    def __init__(self, now: Clock = MONOTONIC) -> None:
        self._now = now
        self._states: dict[str, tuple[float, float, Take]] = {}  # used, as of, and who took last
        self._swept_at = now()

    async def take(self, takes: Sequence[Take], permit: str, lease_s: float) -> Verdict:
        """Take from all or none."""
        return self.take_now(takes)

    def take_now(self, takes: Sequence[Take]) -> Verdict:
        """Take from all or none, without a loop."""
        now, states = self._now(), self._states
        used: list[float] = []
        refused: int | None = None
        for key, _, limit, cost, per_s, _ in takes:
            state = states.get(key)  # as `_current`, once a counter of every request
            left = 0.0 if state is None else state[0] - (now - state[1]) * per_s
            before = left if left > 0.0 else 0.0
            if before + cost > limit + _ROUNDING and refused is None:
                refused = len(used)
            used.append(before)
        if refused is None:
            for take, before in zip(takes, used, strict=True):
                states[take[0]] = (before + take[3], now, take)
            if now - self._swept_at >= _SWEEP_S:
                self._sweep(now)
        return verdict_of(takes, used, refused)

    def settle(self, takes: Sequence[Take], permit: str) -> None:
        """Correct what was taken."""
        now = self._now()
        for take in takes:
            used = self._current(take, now) + take.cost
            if used > 0.0:
                self._states[take.key] = (used, now, take)
            else:
                self._states.pop(take.key, None)

    def __len__(self) -> int:
        return len(self._states)

    def _current(self, take: Take, now: float) -> float:
        state = self._states.get(take.key)
        if state is None:
            return 0.0
        left = state[0] - (now - state[1]) * take.per_s
        return left if left > 0.0 else 0.0

    def _sweep(self, now: float) -> None:
        """Forget counters that are full again: callers come and go."""
        self._swept_at = now
        for key in [key for key, state in self._states.items() if _full_at(*state) <= now]:
            del self._states[key]


def _full_at(used: float, as_of: float, take: Take) -> float:
    if take.kind is Kind.RATE:
        return as_of + used / take.per_s
    return as_of + take.ends_in_s if take.kind is Kind.WINDOW else math.inf


_ROUNDING = 1e-9  # of times that are sums of floats


def wait_s(take: Take, used: float) -> float:
    """Return the seconds until a take that did not fit would; inf if it never will."""
    if take.cost > take.limit:
        return math.inf
    if take.kind is Kind.RATE:
        return (used + take.cost - take.limit) / take.per_s
    return take.ends_in_s if take.kind is Kind.WINDOW else 1.0


def verdict_of(takes: Sequence[Take], used: Sequence[float], refused: int | None) -> Verdict:
    """Return what is left of counters that held `used` before; `refused` is the first that a demand did not fit."""
    if refused is not None:
        left = [max(take.limit - before, 0.0) for take, before in zip(takes, used, strict=True)]
        return Verdict(left, refused, wait_s(takes[refused], used[refused]))
    left = [take[2] - before - take[3] for take, before in zip(takes, used, strict=True)]
    return Verdict([amount if amount > 0.0 else 0.0 for amount in left])
