"""What waits for one model on the way to its pool: in fair order, bounded, and refused at once where it would be late.

A `Lane` decides who goes next, in which call, to which copy of the model; `forwarder.py` sends. Pure arithmetic.
"""

import asyncio
import math
from bisect import insort
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from deployments.errors import ModelLoading, Overloaded, ServeError
from deployments.order import FairOrder, Place
from deployments.types import InferRequest, InferResult, Outcome
from serve_app.silence import Silence

# Requests that must wait for one more call to leave, by the calls a copy has out: one runs; one that is prepared spares
# the device the wait for it, but must be worth its own cost; a further one is for many only.
NEEDED = (1, 8, 16, 32)
_SLOW_S = 1e-3  # a request: the device hardly notices the wait if each takes longer, so twice as many have to gather
GATHER_S = 0.025  # for how long one that is prepared waits for others: what is out may be slow for reasons of its own
MAX_REQUESTS = 64  # in one call
MAX_CALL_BYTES = 32 * 2**20
MAX_WAITING = 4096  # requests of one model; beyond, 429 for what would go last
COPY_REQUESTS = 128  # waiting requests that earn a model one more copy
COPY_HOLD_S = 10.0  # how long a copy is kept after it was last needed, and how long until one that failed is retried
_HEAD_START = 1024  # items by which a step of priority goes ahead
_FEW = 8  # answers before the estimate of speed means anything: the first of a burst also pays for what is cold
_FADE = 64  # answers ago that weigh a third in it
_STANDSTILL = 8  # times as long as usual for that many answers, or for a few, says nothing of speed but that all stood


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model's requests go."""

    pool: str
    key: str
    n_replicas: int = 1
    is_everywhere: bool = False  # pinned models are in every replica: no copy has to be earned
    max_held: int = 0  # requests that may wait while the model is loaded; 0: it is in memory, or there is no limit
    load_s: float = 0.0  # how long its load is going to take; 0.0: it is in memory


@dataclass(frozen=True, slots=True)
class Call:
    """One handle call: requests that share it, each with the seconds it has left, and which copy is meant.

    `backlog` is what still waits behind them for that copy, at `sender`. Without requests it only has the copy loaded.
    """

    target: Target
    requests: Sequence[InferRequest] = ()
    timeouts_s: Sequence[float] = ()
    backlog: int = 0
    sender: str = ""
    copy: int = 0
    number: int = 0  # of this sender's calls: by it requests that have left are named


# Yields outcomes as they become known, each with the index of its request in the call.
Outcomes: TypeAlias = AsyncGenerator[Sequence[tuple[int, Outcome]], None]
Send: TypeAlias = Callable[[Call], Outcomes]


@dataclass(slots=True)
class Waiting:
    """One request and whoever waits for its answer."""

    request: InferRequest
    deadline: float
    place: Place
    future: asyncio.Future[InferResult]
    on_board: "OnBoard | None" = None
    sent_as: tuple[int, int] | None = None  # number of its call, index in it
    is_late: bool = False  # its deadline has passed: the pool, which has its own clock, has stopped as well

    def resolve(self, outcome: Outcome) -> None:
        """Answer, unless nobody waits any more."""
        if self.future.done():
            return
        if isinstance(outcome, ServeError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(slots=True)
class OnBoard:
    """The requests of one call under way; it is cancelled when the last has left, unless all have their answers."""

    n_waiting: int
    is_deserted: bool = False  # by one at least
    task: asyncio.Task[None] | None = None

    def left(self, entry: Waiting) -> bool:
        """Take note that one waits no more, answered or not; return whether that was the last."""
        self.n_waiting -= 1
        self.is_deserted = self.is_deserted or entry.is_late or entry.future.cancelled()
        if not self.n_waiting and self.is_deserted and self.task is not None:
            self.task.cancel()
        return not self.n_waiting


@dataclass(slots=True)
class Lane:
    """One model's requests at one ingress replica."""

    target: Target
    waiting: list[Waiting] = field(default_factory=list)  # by place
    in_flight: list[int] = field(default_factory=lambda: [0])  # calls, by copy
    n_open: int = 0  # requests that wait or are on board
    n_copies: int = 1
    n_warm: int = 1  # of these, those that have the model in memory: requests go to no other
    warming: asyncio.Task[None] | None = None
    warm_after: float = 0.0  # when the next copy may be tried
    gathers_until: float = 0.0
    is_gathering: bool = False  # a pump is due then
    needed_at: float = 0.0
    silence: Silence = field(default_factory=Silence)
    is_called: bool = False  # a pump is due in this loop's next round
    _order: FairOrder = field(default_factory=lambda: FairOrder(_HEAD_START))
    _answered_at: float = 0.0  # or when work began
    _answered: float = 0.0  # answers given while others were waited for, fading, and
    _answered_s: float = 0.0  # how long they took

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is out."""
        return not self.waiting and not any(self.in_flight)

    def enter(self, request: InferRequest, deadline: float, now: float) -> Waiting:
        """Give a request its place; where the lane is full, what would go last gives way.

        Raises:
            Overloaded: there is no room for it, or those ahead take longer than it has.
            ModelLoading: as many as may wait for a load do.
        """
        self._hold()
        self._admit(self._order.next_place(request.tenant, request.priority), deadline - now)
        place = self._order.place(request.tenant, request.priority, request.n_items)
        entry = Waiting(request, deadline, place, asyncio.get_running_loop().create_future())
        if not self.waiting:
            self.gathers_until = now + GATHER_S
        insort(self.waiting, entry, key=_rank)
        self.n_open += 1
        return entry

    def next_to_warm(self, now: float) -> int | None:
        """Give a hot model copies, take them back from a quiet one; return one that has to load the model first."""
        self._set_copies(now)
        if self.n_warm < self.n_copies and self.warming is None and now >= self.warm_after:
            return self.n_warm
        return None

    def next_call(self, now: float) -> tuple[int, list[Waiting]] | None:
        """Remove and return the requests of one more call, and its copy; None while they should gather."""
        in_flight = self.in_flight[: min(self.n_copies, self.n_warm)]
        n_calls = min(in_flight)
        if not self.waiting or len(self.waiting) < self._needed(n_calls, now):
            return None
        copy = in_flight.index(n_calls)
        share = -(-len(self.waiting) // in_flight.count(n_calls))  # copies equally free run side by side
        entries = self._take(min(share, MAX_REQUESTS))
        if not entries:
            return None
        if not any(self.in_flight):
            self._answered_at = now
        self.in_flight[copy] += 1
        self.gathers_until = now + GATHER_S
        return copy, entries

    def _needed(self, n_calls: int, now: float) -> float:
        if n_calls >= len(NEEDED):
            return math.inf
        if n_calls == 1 and now >= self.gathers_until:
            return 1
        return NEEDED[n_calls] * (2 if n_calls and self._s_per_request > _SLOW_S else 1)

    def learn(self, outcomes: Sequence[tuple[int, Outcome]], now: float) -> None:
        """Take the time since the last answers into account, unless it went into a load, an error or a standstill.

        Without others to be answered it says nothing: what a lone request takes is not what a model can do.
        """
        seconds, self._answered_at = now - self._answered_at, now
        if self.n_open <= len(outcomes):
            return
        if all(isinstance(outcome, InferResult) and outcome.timings.load_s < 0.1 for _, outcome in outcomes):
            if self._s_per_request:
                seconds = min(seconds, _STANDSTILL * self._s_per_request * (len(outcomes) + _FEW))
            kept = math.exp(-len(outcomes) / _FADE)
            self._answered = self._answered * kept + len(outcomes)
            self._answered_s = self._answered_s * kept + seconds

    @property
    def _s_per_request(self) -> float:
        """Seconds between answers while there is work; 0.0 while it is not known."""
        return self._answered_s / self._answered if self._answered >= _FEW else 0.0

    @property
    def wait_s(self) -> float:
        """Seconds until all that is here now is answered; 0.0 while it is not known."""
        return self.n_open * self._s_per_request

    def _hold(self) -> None:
        if self.target.max_held and self.n_open >= self.target.max_held:
            reason = f"it is being loaded, and {self.n_open} requests wait for it already"
            wait_s = round(max(self.target.load_s, 0.05), 3)
            raise ModelLoading(f"model {self.target.key!r}: {reason}", reason=reason, retry_after_s=wait_s)

    def _admit(self, place: Place, left_s: float) -> None:
        if 0 < left_s < self.wait_s:
            still = [entry.place.rank for entry in self.waiting if not entry.future.done()]
            n_on_board = self.n_open - len(still)
            ahead_s = (n_on_board + sum(rank <= place.rank for rank in still)) * self._s_per_request
            if ahead_s > left_s:
                raise Overloaded(
                    f"what goes before it to {self.target.key!r} takes {ahead_s:.3g} s, the request has {left_s:.3g} s",
                    retry_after_s=round(max(ahead_s - left_s, 0.05), 3),
                )
        if len(self.waiting) < MAX_WAITING:
            return
        self.waiting = [entry for entry in self.waiting if not entry.future.done()]
        if len(self.waiting) < MAX_WAITING:
            return
        wait_s = round(max(self._s_per_request, 0.05), 3)
        error = Overloaded(f"{MAX_WAITING} requests wait for model {self.target.key!r}", retry_after_s=wait_s)
        if self.waiting[-1].place.rank <= place.rank:
            raise error
        self.waiting.pop().resolve(error)

    def _set_copies(self, now: float) -> None:
        most = max(self.target.n_replicas, 1)
        wanted = most if self.target.is_everywhere else min(most, 1 + len(self.waiting) // COPY_REQUESTS)
        if wanted >= self.n_copies or self.n_copies > most or now - self.needed_at > COPY_HOLD_S:
            self.n_copies, self.needed_at = wanted, now
        self.in_flight.extend([0] * (self.n_copies - len(self.in_flight)))
        self.n_warm = min(most if self.target.is_everywhere else self.n_warm, self.n_copies)

    def _take(self, most: int) -> list[Waiting]:
        entries: list[Waiting] = []
        n_seen = size = 0
        for entry in self.waiting:
            if not entry.future.done():
                size += entry.request.size_bytes
                if len(entries) == most or (entries and size > MAX_CALL_BYTES):
                    break
                entries.append(entry)
                self._order.began(entry.place)
            n_seen += 1
        del self.waiting[:n_seen]
        if not self.waiting:
            self._order.idle()
        return entries


def _rank(entry: Waiting) -> float:
    return entry.place.rank
