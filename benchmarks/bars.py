"""The bars of issue 3, each as a ratio within one run. Called by `__main__` and `report`."""

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
    for side, cell, limit in (
        (OURS, "short@64", 1.3),
        (FASTEST, "short@64", 2.0),
        (OURS, "mixed@64", 3.0),
        (FASTEST, "mixed@64", 3.0),
        (OURS, "bulk@4", 1.2),
    ):
        best = results.best_peer(cell)
        if best and (found := _ratio(results, cell, side, best, "requests_per_s")):
            yield Bar(f"{cell}: {side}'s texts/s ÷ best peer's ({best})", found, limit)
    if found := _ratio(results, "mixed@64", OURS, CEILING, "requests_per_s"):
        yield Bar("mixed@64: texts/s ÷ bare loop's", found, 0.85)


def _cpu(results: Results) -> Iterator[Bar]:
    for cell, limit in (("short@64", 1.15), ("bulk@4", 1.05)):
        if found := _ratio(results, cell, OURS, CEILING, "cpu_s_per_request"):
            yield Bar(f"{cell}: CPU a text ÷ bare loop's", found, limit, at_least=False)


def _ratio(results: Results, cell: str, side: str, other: str, name: str) -> float | None:
    """Return the median of the rounds' ratios: the machine of one round is the same for both, that of two is not."""
    mine, theirs = (
        {m.turn: float(getattr(m, name)) for m in results.cells.get(cell, {}).get(one, [])} for one in (side, other)
    )
    ratios = [value / theirs[turn] for turn, value in mine.items() if theirs.get(turn)]
    return median(ratios) if ratios else None


def _latency(results: Results) -> Iterator[Bar]:
    single = results.cells.get("short@1", {})
    if OURS in single and DIRECT in single:
        gap = _median(single[OURS], "p50_ms") - _median(single[DIRECT], "p50_ms")
        yield Bar("short@1: p50 less that of FastAPI calling the model, ms", gap, 2.0, at_least=False)
    best = results.best_peer("short@64")
    theirs = results.open_loops.get("80%", {}).get(best or "")
    for side in (OURS, FASTEST):
        mine = results.open_loops.get(BEST, {}).get(side)
        if mine and theirs:
            ratio = _median(mine, "p99_ms") / _median(theirs, "p99_ms")
            yield Bar(f"open loop at 80 % of {best}'s maximum: {side}'s p99 ÷ its p99", ratio, 0.5, at_least=False)


def _median(found: list[Measurement], name: str) -> float:
    return float(median(getattr(m, name) for m in found))
