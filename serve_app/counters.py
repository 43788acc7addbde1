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

    remaining: tuple[float, ...]
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
        self._used: dict[str, tuple[float, float, float]] = {}  # used, as of, forgotten at
        self._swept_at = now()

    async def take(self, takes: Sequence[Take], permit: str, lease_s: float) -> Verdict:
        """Take from all or none."""
        return self.take_now(takes)

    def take_now(self, takes: Sequence[Take]) -> Verdict:
        """Take from all or none, without a loop."""
        now, states = self._now(), self._used
        used: list[float] = []
        refused: int | None = None
        for key, _, limit, cost, per_s, _ in takes:
            state = states.get(key)  # as `_current`, once a counter of every request
            before = 0.0 if state is None else state[0] - (now - state[1]) * per_s
            used.append(before if before > 0.0 else 0.0)
            if refused is None and used[-1] + cost > limit + _ROUNDING:
                refused = len(used) - 1
        if refused is None:
            for take, before in zip(takes, used, strict=True):
                self._put(take, before + take.cost, now)
            if now - self._swept_at >= _SWEEP_S:
                self._sweep(now)
        return verdict_of(takes, used, refused)

    def settle(self, takes: Sequence[Take], permit: str) -> None:
        """Correct what was taken."""
        now = self._now()
        for take in takes:
            if take.cost:
                self._put(take, self._current(take, now) + take.cost, now)

    def __len__(self) -> int:
        return len(self._used)

    def _current(self, take: Take, now: float) -> float:
        state = self._used.get(take.key)
        if state is None:
            return 0.0
        left = state[0] - (now - state[1]) * take.per_s if take.per_s else state[0]
        return left if left > 0.0 else 0.0

    def _put(self, take: Take, used: float, now: float) -> None:
        key, kind, _, _, per_s, ends_in_s = take
        if used <= 0.0:
            self._used.pop(key, None)
        elif kind is Kind.RATE:
            self._used[key] = (used, now, now + used / per_s)
        else:
            self._used[key] = (used, now, now + ends_in_s if kind is Kind.WINDOW else math.inf)

    def _sweep(self, now: float) -> None:
        """Forget counters that are full again: callers come and go."""
        self._swept_at = now
        for key in [key for key, (_, _, until) in self._used.items() if until <= now]:
            del self._used[key]


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
        left = tuple(max(take.limit - before, 0.0) for take, before in zip(takes, used, strict=True))
        return Verdict(left, refused, wait_s(takes[refused], used[refused]))
    amounts = [take.limit - before - take.cost for take, before in zip(takes, used, strict=True)]
    return Verdict(tuple([amount if amount > 0.0 else 0.0 for amount in amounts]))
