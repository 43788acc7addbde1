"""From rules to counters: which apply to a caller and a model, what each is called, and how its window runs. Pure.

Called by `limits.py`, which keeps what is found here per caller and model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import lru_cache

from deployments.types import Clock, ModelStatus
from serve_app.counters import Kind, Take
from serve_app.limits_config import LimitRule, Rate
from serve_app.principals import Principal

_UNITS = ("requests", "items", "tokens")
_LONGEST_S = 31 * 24 * 3600.0
_WINDOWS = {"per_minute": "minute", "per_hour": "hour", "per_day": "day", "per_month": "month"}


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter of one rule for one caller; the key of a window still lacks its name."""

    rule: str
    unit: str
    key: str
    kind: Kind
    limit: float
    per_s: float = 0.0
    window: str = ""

    @property
    def says(self) -> str:
        """Return the limit in words."""
        if self.kind is Kind.PERMITS:
            return f"{self.limit:g} requests at a time"
        return f"{self.limit:g} {self.unit} a {self.window}" if self.window else f"{self.per_s:g} {self.unit} a second"

    @property
    def is_settled(self) -> bool:
        """Return whether what was taken is corrected when the request ends."""
        return self.kind is Kind.PERMITS or self.unit == "tokens"

    def take(self, cost: float, windows: "Windows") -> Take:
        """Return what a request that costs this much takes from it."""
        if self.kind is not Kind.WINDOW:
            return Take(self.key, self.kind, self.limit, cost, self.per_s)
        name, ends_in_s = windows.now(self.window)
        return Take(f"{self.key}:{name}", self.kind, self.limit, cost, 0.0, ends_in_s)

    def reset_s(self, take: Take, left: float) -> float:
        """Return the seconds until it is full again."""
        return take.ends_in_s if self.kind is Kind.WINDOW else (self.limit - left) / self.per_s


class Windows:
    """The calendar windows that run now; `wall` is seconds since 1970."""

    def __init__(self, wall: Clock) -> None:
        self._wall = wall
        self._running: dict[str, tuple[str, float]] = {}  # by kind of window: its name, when it ends

    def now(self, window: str) -> tuple[str, float]:
        """Return the name of the current window and the seconds until it ends."""
        wall = self._wall()
        name, end = self._running.get(window, ("", 0.0))
        if wall >= end or end - wall > _LONGEST_S:  # the latter: the clock was set back
            name, left_s = window_of(window, datetime.fromtimestamp(wall, UTC))
            self._running[window] = (name, wall + left_s)
            return name, left_s
        return name, end - wall


class Applying:
    """All counters that apply to one caller at one model; what is the same for every request is made once."""

    def __init__(self, counters: Iterable[Counter]) -> None:
        self.counters = tuple(counters)
        self._takes = [(counter, _one_of(counter)) for counter in self.counters]
        self._settled = [(n, c.kind is Kind.PERMITS) for n, c in enumerate(self.counters) if c.is_settled]

    def takes(self, n_items: float, n_tokens: float, windows: Windows) -> list[Take]:
        """Return what a request takes from each."""
        made: list[Take] = []
        for counter, take in self._takes:
            if take is None:
                cost = n_items if counter.unit == "items" else n_tokens if counter.unit == "tokens" else 1.0
                take = counter.take(cost, windows)
            made.append(take)
        return made

    def corrections(self, takes: Sequence[Take], n_tokens: float, *, at_least_taken: bool) -> list[Take]:
        """Return what gives the permits of these takes back, and makes tokens what they were."""
        made: list[Take] = []
        for index, is_permit in self._settled:
            key, kind, limit, cost, per_s, ends_in_s = takes[index]
            if is_permit:
                made.append(Take(key, kind, limit, -1.0))
            elif n_tokens > cost or (n_tokens < cost and not at_least_taken):
                made.append(Take(key, kind, limit, n_tokens - cost, per_s, ends_in_s))
        return made


def _one_of(counter: Counter) -> Take | None:
    """Return what every request takes alike, if there is such a thing."""
    if counter.kind is Kind.WINDOW or counter.unit in ("items", "tokens"):
        return None
    return Take(counter.key, counter.kind, counter.limit, 1.0, counter.per_s)


def counters_for(rules: Iterable[LimitRule], principal: Principal, asked: str, model: ModelStatus) -> Iterator[Counter]:
    """Yield the counters of all rules that match a caller and a model, by its own names or the alias asked for."""
    who = {
        "key": f"k={principal.credential or principal.name}",
        "principal": f"p={principal.name}",
        "model": f"m={model.name}",
    }
    names = (asked, model.name, model.key)
    for rule in rules:
        is_theirs = any(fnmatchcase(principal.name, glob) for glob in rule.principals)
        if is_theirs and any(fnmatchcase(name, glob) for name in names for glob in rule.models):
            yield from _counters_of(rule, ",".join(who[part] for part in sorted(rule.per)))


def _counters_of(rule: LimitRule, who: str) -> Iterator[Counter]:
    for unit in _UNITS:
        rate: Rate | None = getattr(rule, unit)
        if rate is None:
            continue
        key = f"{rule.name}:{who}:{unit}"
        if rate.per_s is not None:
            yield Counter(rule.name, unit, key, Kind.RATE, rate.capacity, rate.per_s)
        for name, window in _WINDOWS.items():
            if (limit := getattr(rate, name)) is not None:
                yield Counter(rule.name, unit, f"{key}:{window}", Kind.WINDOW, limit, window=window)
    if rule.concurrency is not None:
        yield Counter(rule.name, "concurrency", f"{rule.name}:{who}:concurrency", Kind.PERMITS, rule.concurrency)


def window_of(window: str, now: datetime) -> tuple[str, float]:
    """Return the name of the current window (UTC) and the seconds until it ends."""
    name, end = _window_at(window, now.replace(second=0, microsecond=0))
    return name, (end - now).total_seconds()


@lru_cache(maxsize=64)
def _window_at(window: str, minute: datetime) -> tuple[str, datetime]:
    if window == "minute":
        start, end = minute, minute + timedelta(minutes=1)
    elif window == "hour":
        start = minute.replace(minute=0)
        end = start + timedelta(hours=1)
    elif window == "day":
        start = minute.replace(minute=0, hour=0)
        end = start + timedelta(days=1)
    else:
        start = minute.replace(minute=0, hour=0, day=1)
        end = (start + timedelta(days=32)).replace(day=1)
    return f"{start:%Y%m%d%H%M}", end
