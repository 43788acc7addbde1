"""Batching alone, in virtual time: our `BatchQueue` against `@serve.batch`'s windows and what nobody can beat.

All see the same Poisson arrivals and the same engine, whose time is that of all-MiniLM-L6-v2 on one core. The bound
runs shortest first, every text at its marginal cost and its share of the overhead of a full batch: no batcher that has
to form batches from what is there can be faster. `python -m benchmarks batching`.
"""

import asyncio
import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks import virtual_time
from benchmarks.measure import percentile
from benchmarks.report import aligned
from deployments.batching import BatchQueue
from deployments.spec import BatchLimits
from deployments.turns import Turns
from deployments.types import Item

OVERHEAD_S, TOKEN_S = 0.009, 0.00020
MAX_ITEMS = 32
_SECONDS, _MOST_TEXTS = 120.0, 12_000
_MIXES = {"short": (6, 16), "mixed": (4, 256)}
_LOADS = (0.1, 0.5, 0.8, 0.95, 1.2)


@dataclass
class Outcome:
    """What a batcher did with one series of arrivals."""

    latency_s: list[float] = field(default_factory=list)
    tokens: int = 0
    run_tokens: int = 0
    n_batches: int = 0
    ended: float = 0.0

    @property
    def done_per_s(self) -> float:
        return len(self.latency_s) / self.ended

    @property
    def waste(self) -> float:
        return 1 - self.tokens / self.run_tokens if self.run_tokens else 0.0


class Batcher(Protocol):
    """Takes texts, by their tokens, and returns when each is done."""

    async def embed(self, tokens: int) -> None:
        """Wait until a text of so many tokens is done."""


class Engine:
    """Sleeps as long as the model would run; counts tokens, padding included unless packed."""

    def __init__(self, outcome: Outcome, *, is_packed: bool = False) -> None:
        self._outcome = outcome
        self._is_packed = is_packed

    async def run(self, tokens: Sequence[int]) -> None:
        cost = sum(tokens) if self._is_packed else len(tokens) * max(tokens)
        self._outcome.tokens += sum(tokens)
        self._outcome.run_tokens += cost
        self._outcome.n_batches += 1
        await asyncio.sleep(OVERHEAD_S + cost * TOKEN_S)


class Ours:
    """The real `BatchQueue` on the virtual clock."""

    def __init__(self, engine: Engine, *, is_packed: bool) -> None:
        self._engine = engine
        limits = BatchLimits(max_items=MAX_ITEMS, max_queue_items=10**6)
        clock = asyncio.get_running_loop().time
        self._queue = BatchQueue(self._run, limits, Turns(clock).of("minilm"), clock, is_packed=lambda: is_packed)

    async def embed(self, tokens: int) -> None:
        (future,) = self._queue.submit([Item(tokens, tokens)], math.inf)
        await future

    async def _run(self, items: list[Item]) -> Sequence[int]:
        await self._engine.run([item.cost for item in items])
        return [item.cost for item in items]


class Windows:
    """`@serve.batch` with its defaults: a window opens with the first text; one batch at a time, cut batches queue."""

    def __init__(self, engine: Engine, window_s: float) -> None:
        self._engine = engine
        self._window_s = window_s
        self._permit = asyncio.Semaphore(1)
        self._open: list[tuple[int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._cut: set[asyncio.Task[None]] = set()

    async def embed(self, tokens: int) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._open.append((tokens, future))
        if len(self._open) == MAX_ITEMS:
            self._close()
        elif self._timer is None:
            self._timer = loop.call_later(self._window_s, self._close)
        await future

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._open = self._open, []
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._cut.add(task)
        task.add_done_callback(self._cut.discard)

    async def _run(self, batch: Sequence[tuple[int, asyncio.Future[None]]]) -> None:
        async with self._permit:
            await self._engine.run([tokens for tokens, _ in batch])
        for _, future in batch:
            future.set_result(None)


def arrivals(mix: str, per_s: float, seed: int = 1) -> list[tuple[float, int]]:
    """Return (second, tokens) of Poisson arrivals; lengths uniform where short, log-uniform where mixed."""
    rng = random.Random(f"{seed} {mix}")
    low, high = _MIXES[mix]
    now, found = 0.0, list[tuple[float, int]]()
    while (now := now + rng.expovariate(per_s)) < _SECONDS and len(found) < _MOST_TEXTS:
        tokens = rng.uniform(low, high) if mix == "short" else math.exp(rng.uniform(math.log(low), math.log(high)))
        found.append((now, round(tokens)))
    return found


def simulate(make: Callable[[Outcome], Batcher], when: Sequence[tuple[float, int]]) -> Outcome:
    """Run one batcher on one series of arrivals until the last one is answered."""
    outcome = Outcome()

    async def one(batcher: Batcher, tokens: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await batcher.embed(tokens)
        outcome.latency_s.append(loop.time() - began)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        batcher = make(outcome)
        async with asyncio.TaskGroup() as group:
            for at, tokens in when:
                await asyncio.sleep(at - loop.time())
                group.create_task(one(batcher, tokens))
        outcome.ended = loop.time()

    virtual_time.run(work())
    return outcome


def bound(when: Sequence[tuple[float, int]]) -> Outcome:
    """Run shortest first, one text at a time, each with a full batch's share of the overhead and no padding."""
    outcome, now, waiting, turn = Outcome(), 0.0, list[tuple[int, float]](), 0
    while turn < len(when) or waiting:
        if not waiting:
            now = max(now, when[turn][0])
        while turn < len(when) and when[turn][0] <= now:
            heapq.heappush(waiting, (when[turn][1], when[turn][0]))
            turn += 1
        tokens, since = heapq.heappop(waiting)
        now += OVERHEAD_S / MAX_ITEMS + tokens * TOKEN_S
        outcome.latency_s.append(now - since)
    outcome.ended = now
    return outcome


def most_per_s(mix: str) -> float:
    """Return the bound's texts a second when there is always work: what loads are shares of."""
    tokens = [tokens for _, tokens in arrivals(mix, 1000.0)]
    return 1 / (OVERHEAD_S / MAX_ITEMS + TOKEN_S * sum(tokens) / len(tokens))


BATCHERS: dict[str, Callable[[Outcome], Batcher]] = {
    "ours, packed": lambda outcome: Ours(Engine(outcome, is_packed=True), is_packed=True),
    "ours, padded": lambda outcome: Ours(Engine(outcome), is_packed=False),
    "@serve.batch 10 ms": lambda outcome: Windows(Engine(outcome), 0.010),
    "@serve.batch 50 ms": lambda outcome: Windows(Engine(outcome), 0.050),
}


def rows() -> Iterator[dict[str, float | str]]:
    """Return one row a mix, load and batcher."""
    for mix in _MIXES:
        most = most_per_s(mix)
        for load in _LOADS:
            when = arrivals(mix, load * most)
            outcomes = {name: simulate(make, when) for name, make in BATCHERS.items()} | {"bound": bound(when)}
            for name, outcome in outcomes.items():
                yield {
                    "mix": mix,
                    "load": load,
                    "offered_per_s": load * most,
                    "batcher": name,
                    "done_per_s": outcome.done_per_s,
                    "p50_ms": percentile(outcome.latency_s, 0.5) * 1e3,
                    "p99_ms": percentile(outcome.latency_s, 0.99) * 1e3,
                    "items_a_batch": len(outcome.latency_s) / outcome.n_batches if outcome.n_batches else math.nan,
                    "padding": outcome.waste,
                }


def table(found: Sequence[dict[str, float | str]]) -> str:
    """Return the rows as text."""
    head = ["batcher", "texts", "load", "offered/s", "done/s", "p50 ms", "p99 ms", "items a batch", "padding"]
    lines = [
        [
            f"{row['batcher']}",
            f"{row['mix']}",
            f"{row['load']:.0%}",
            *(f"{row[name]:.0f}" for name in ("offered_per_s", "done_per_s", "p50_ms", "p99_ms")),
            f"{row['items_a_batch']:.1f}",
            f"{row['padding']:.0%}",
        ]
        for row in found
    ]
    return aligned([head, *lines])
