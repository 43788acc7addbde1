"""The bars of issue 3, each as a ratio within one run. Called by `__main__` and `report`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks.endtoend import BEST, Results
from benchmarks.measure import Measurement

OURS, FASTEST, CEILING, DIRECT = "ours", "ours-bf16", "ceiling", "fastapi"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `found` must be at least `limit`, or at most."""

    text: str
    found: float
    limit: float
    at_least: bool = True

    @property
    def is_met(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


def bars(results: Results) -> list[Bar]:
    """Return every bar that this run has figures for."""
    return [*_speed(results), *_cpu(results), *_latency(results)]


def _speed(results: Results) -> Iterator[Bar]:
    for cell, limit in (("short@64", 1.3), ("mixed@64", 3.0), ("bulk@4", 1.2)):
        mine, best = results.texts_per_s(cell, OURS), results.best_peer(cell)
        if mine and best:
            yield Bar(f"{cell}: texts/s ÷ best peer's ({best})", mine / results.texts_per_s(cell, best), limit)
    fastest, best = results.texts_per_s("short@64", FASTEST), results.best_peer("short@64")
    if fastest and best:
        yield Bar(
            f"short@64: bfloat16's texts/s ÷ best peer's ({best})", fastest / results.texts_per_s("short@64", best), 2.0
        )
    mine, most = results.texts_per_s("mixed@64", OURS), results.texts_per_s("mixed@64", CEILING)
    if mine and most:
        yield Bar("mixed@64: texts/s ÷ bare loop's", mine / most, 0.85)


def _cpu(results: Results) -> Iterator[Bar]:
    for cell, limit in (("short@64", 1.15), ("bulk@4", 1.05)):
        mine, least = results.cpu_per_1000(cell, OURS), results.cpu_per_1000(cell, CEILING)
        if not math.isnan(mine + least):
            yield Bar(f"{cell}: CPU a text ÷ bare loop's", mine / least, limit, at_least=False)


def _latency(results: Results) -> Iterator[Bar]:
    single = results.cells.get("short@1", {})
    if OURS in single and DIRECT in single:
        gap = _median(single[OURS], "p50_ms") - _median(single[DIRECT], "p50_ms")
        yield Bar("short@1: p50 less that of FastAPI calling the model, ms", gap, 2.0, at_least=False)
    best = results.best_peer("short@64")
    mine, theirs = results.open_loops.get(BEST, {}).get(OURS), results.open_loops.get("80%", {}).get(best or "")
    if mine and theirs:
        ratio = _median(mine, "p99_ms") / _median(theirs, "p99_ms")
        yield Bar(f"open loop at 80 % of {best}'s maximum: p99 ÷ its p99", ratio, 0.5, at_least=False)


def _median(found: list[Measurement], name: str) -> float:
    return float(median(getattr(m, name) for m in found))
