"""Placement at scale in virtual time: the router's order and the residency as they are, against Serve's affinity.

    python -m benchmarks.placement_sim [--models 1000] [--replicas 100] [--room 20] [--rate 1000] [--seconds 60]
                                       [--steady] [--svg FILE]

Real are `deployments.router.rank`, `deployments.residency.Residency` and `serve_app.forwarder.Forwarder` (its lanes and
copies); simulated are time, loads (`LOAD_S` each) and forward passes. "affinity" is Serve 2.60's published rule for
multiplexed models: a replica that advertises the model (the less busy of two), else, until an advert arrives
`ADVERT_S` later, a random one of those with the fewest models; each keeps as many models as ours, by count, and loads
one at a time. Popularity is Zipf(1.0), arrivals are Poisson. At half time a tenth of the replicas leaves and as many
new ones join.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import virtual_time

from deployments.residency import Residency
from deployments.router import rank
from deployments.spec import ModelSpec
from deployments.types import InferRequest, InferResult, Outcome, Timings
from serve_app.forwarder import Call, Forwarder, Target

LOAD_S, RUN_S, ADVERT_S, N_HOT = 0.5, 0.004, 0.3, 20


def spec(index: int) -> ModelSpec:
    return ModelSpec.model_validate({"name": f"m{index}", "task": "fill-mask", "source": {"path": "/x"}})


class Loader:
    """Every model takes one byte and LOAD_S seconds."""

    def __init__(self, loads: Counter[str]) -> None:
        self._loads = loads

    async def estimate(self, spec: ModelSpec) -> int:
        return 1

    async def load(self, spec: ModelSpec) -> str:
        self._loads[spec.key] += 1
        await asyncio.sleep(LOAD_S)
        return spec.key

    def size_bytes(self, model: str) -> int:
        return 1

    async def unload(self, model: str) -> None:
        await asyncio.sleep(0)

    def parked_bytes(self, model: str) -> int | None:
        return None

    async def park(self, model: str) -> None:
        raise NotImplementedError

    async def unpark(self, model: str) -> None:
        raise NotImplementedError


@dataclass
class Outcomes:
    """What a run found; `hit` requests found their model in memory."""

    hits: list[float] = field(default_factory=list)
    misses: list[float] = field(default_factory=list)
    hot: list[float] = field(default_factory=list)
    loads: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    timeline: list[tuple[float, float]] = field(default_factory=list)  # (second, hit rate)

    def add(self, index: int, seconds: float, *, is_hit: bool) -> None:
        (self.hits if is_hit else self.misses).append(seconds)
        if index < N_HOT:
            self.hot.append(seconds)

    def table(self) -> dict[str, float]:
        def ms(values: Sequence[float], q: int) -> float:
            return round(1000 * float(np.percentile(values, q)), 1) if values else 0.0

        total = len(self.hits) + len(self.misses)
        copies = [n for n in self.copies.values() if n]
        return {
            "requests": total,
            "errors": self.errors,
            "hit_rate": round(len(self.hits) / max(total, 1), 4),
            "loads": sum(self.loads.values()),
            "p50_ms": ms(self.hits + self.misses, 50),
            "p99_ms": ms(self.hits + self.misses, 99),
            "hot_p99_ms": ms(self.hot, 99),
            "mean_copies": round(statistics.mean(copies), 2) if copies else 0.0,
            "max_copies": max(copies, default=0),
        }


class Ours:
    """The real forwarder over the real order of replicas and a real residency in each."""

    def __init__(self, names: list[str], models: list[ModelSpec], room: int, out: Outcomes) -> None:
        self.out = out
        self._room = room
        self._specs = {spec.key: spec for spec in models}
        self.replicas = {name: self._replica() for name in names}
        self._orders: dict[str, list[str]] = {}
        clock = asyncio.get_running_loop().time
        self._forwarder = Forwarder(self._send, clock)

    def _replica(self) -> tuple[Residency[str], asyncio.Semaphore]:
        clock = asyncio.get_running_loop().time
        return Residency(self._room, Loader(self.out.loads), clock=clock), asyncio.Semaphore(1)

    def change(self, gone: list[str], new: list[str]) -> None:
        for name in gone:
            del self.replicas[name]
        self.replicas.update({name: self._replica() for name in new})
        self._orders.clear()

    async def _send(self, call: Call) -> AsyncGenerator[list[tuple[int, Outcome]], None]:
        key = call.target.key
        order = self._orders.get(key) or self._orders.setdefault(key, rank(key, list(self.replicas)))
        residency, device = self.replicas[order[call.copy % len(order)]]
        clock = asyncio.get_running_loop().time
        began = clock()
        async with residency.lease(self._specs[key]):
            timings = Timings(load_s=clock() - began)
            if call.requests:
                async with device:
                    await asyncio.sleep(RUN_S * (1 + 0.1 * (len(call.requests) - 1)))
        yield [(index, InferResult(key, "1", {}, timings=timings)) for index in range(len(call.requests))]

    async def ask(self, index: int) -> None:
        key, loop = f"m{index}:1", asyncio.get_running_loop()
        began, loads = loop.time(), self.out.loads[key]
        target = Target("pool", key, n_replicas=len(self.replicas))
        await self._forwarder.forward(target, InferRequest(key, {}), began + 60)
        waited = loop.time() - began
        self.out.add(index, waited, is_hit=waited < LOAD_S or self.out.loads[key] == loads)

    def holders(self) -> Counter[str]:
        return Counter(m for residency, _ in self.replicas.values() for m in residency.models())


class _Affine:
    """One replica behind @serve.multiplexed: LRU by count, one load at a time."""

    def __init__(self, room: int, out: Outcomes) -> None:
        self._room = room
        self.models: OrderedDict[str, None] = OrderedDict()
        self.advertised: set[str] = set()
        self.n_ongoing = 0
        self._lock = asyncio.Lock()
        self._device = asyncio.Semaphore(1)
        self._out = out

    async def run(self, key: str) -> bool:
        self.n_ongoing += 1
        try:
            is_hit = key in self.models
            if not is_hit:
                async with self._lock:
                    if key not in self.models:
                        while len(self.models) >= self._room:
                            self.models.popitem(last=False)
                        self._advertise()
                        self._out.loads[key] += 1
                        await asyncio.sleep(LOAD_S)
                        self.models[key] = None
                        self._advertise()
            if key in self.models:
                self.models.move_to_end(key)
            async with self._device:
                await asyncio.sleep(RUN_S)
            return is_hit
        finally:
            self.n_ongoing -= 1

    def _advertise(self) -> None:
        now = set(self.models)
        asyncio.get_running_loop().call_later(ADVERT_S, setattr, self, "advertised", now)


class Affinity:
    """Serve's own routing for multiplexed models, as its code has it."""

    def __init__(self, names: list[str], models: list[ModelSpec], room: int, out: Outcomes) -> None:
        self.out = out
        self._room = room
        self.replicas = {name: _Affine(room, out) for name in names}
        self._chance = random.Random(1)

    def change(self, gone: list[str], new: list[str]) -> None:
        for name in gone:
            del self.replicas[name]
        self.replicas.update({name: _Affine(self._room, self.out) for name in new})

    def _choose(self, key: str) -> _Affine:
        replicas = list(self.replicas.values())
        holders = [replica for replica in replicas if key in replica.advertised]
        if not holders:
            fewest = min(len(replica.advertised) for replica in replicas)
            holders = [replica for replica in replicas if len(replica.advertised) == fewest]
        two = self._chance.sample(holders, min(2, len(holders)))
        return min(two, key=lambda replica: replica.n_ongoing)

    async def ask(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        is_hit = await self._choose(f"m{index}:1").run(f"m{index}:1")
        self.out.add(index, loop.time() - began, is_hit=is_hit)

    def holders(self) -> Counter[str]:
        return Counter(m for replica in self.replicas.values() for m in replica.models)


async def play(side: type[Ours] | type[Affinity], args: argparse.Namespace) -> Outcomes:
    """Send the same arrivals to one side."""
    out, loop = Outcomes(), asyncio.get_running_loop()
    names = [f"r{i}" for i in range(args.replicas)]
    models = [spec(i) for i in range(args.models)]
    system = side(names, models, args.room, out)
    weights = 1 / np.arange(1, args.models + 1)
    chance = np.random.default_rng(0)
    n_requests = int(args.rate * args.seconds)
    picks = chance.choice(args.models, n_requests, p=weights / weights.sum())
    gaps = chance.exponential(1 / args.rate, n_requests)
    tasks: set[asyncio.Task[None]] = set()
    is_changed, second, before = False, 0, (0, 0)

    def done(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        out.errors += task.exception() is not None

    for pick, gap in zip(picks, gaps, strict=True):
        await asyncio.sleep(gap)
        if not (is_changed or args.steady) and loop.time() >= args.seconds / 2:
            is_changed = True
            n_moved = args.replicas // 10
            system.change(names[:n_moved], [f"n{i}" for i in range(n_moved)])
        if loop.time() >= second + 1:
            second += 1
            now = (len(out.hits), len(out.hits) + len(out.misses))
            share = (now[0] - before[0]) / max(now[1] - before[1], 1)
            out.timeline.append((second, share))
            before = now
        task = loop.create_task(system.ask(int(pick)))
        tasks.add(task)
        task.add_done_callback(done)
    await asyncio.gather(*tasks, return_exceptions=True)
    out.copies = system.holders()
    return out


def moved(n_models: int, n_replicas: int) -> dict[str, float]:
    """Return the share of models whose first replica changes when one joins, and when one leaves."""
    names = [f"r{i}" for i in range(n_replicas)]
    home = {f"m{i}:1": rank(f"m{i}:1", names)[0] for i in range(n_models)}
    joined = sum(rank(key, [*names, "new"])[0] != first for key, first in home.items())
    left = sum(rank(key, names[1:])[0] != first for key, first in home.items())
    spread = Counter(home.values())
    return {
        "moved_by_one_joining": joined / n_models,
        "moved_by_one_leaving": left / n_models,
        "homes_min": min(spread[name] for name in names),
        "homes_max": max(spread.values()),
    }


def plot(lines: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Draw hit rates over time as an SVG."""
    width, height, colours = 640, 320, {"ours": "#2563eb", "affinity": "#d97706"}
    end = max(second for line in lines.values() for second, _ in line)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = height - 40 - share * (height - 80)
        parts.append(f'<line x1="50" y1="{y}" x2="{width - 20}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="10" y="{y + 4}" font-size="12">{share:.0%}</text>')
    for row, (name, line) in enumerate(lines.items()):
        points = " ".join(
            f"{50 + t / end * (width - 70):.1f},{height - 40 - share * (height - 80):.1f}" for t, share in line
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{60 + 90 * row}" y="20" font-size="14" fill="{colours[name]}">{name}</text>')
    parts.append(f'<text x="{width // 2 - 160}" y="{height - 10}" font-size="12">hit rate by second; ')
    parts.append("a tenth of the replicas is replaced at half time</text></svg>")
    path.write_text("".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--room", type=int, default=20, help="models a replica has room for")
    parser.add_argument("--steady", action="store_true", help="no replica leaves")
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    print("placement", json.dumps(moved(args.models, args.replicas)))
    found = {}
    for name, side in (("ours", Ours), ("affinity", Affinity)):
        found[name] = virtual_time.run(lambda side=side: play(side, args))  # type: ignore[misc]
        print(name, json.dumps(found[name].table()), flush=True)
    if args.svg:
        plot({name: out.timeline for name, out in found.items()}, args.svg)


if __name__ == "__main__":
    main()
