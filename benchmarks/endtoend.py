"""End to end against peers: every cell, every side, interleaved rounds; then open loops at shares of each one's most.

Rounds are outermost and sides innermost, starting with another side each time: a slow minute of the machine hits all.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from benchmarks import equality
from benchmarks.contestant import Contestant
from benchmarks.measure import Measurement
from benchmarks.workload import BULK, SHORT_64, Cell

Say = Callable[[str], None]
BEST = "80% of the best peer"
_OPEN = Cell("short", 0, 3, 6)  # a side that stood still for minutes has timers to catch up with at first


@dataclass
class Results:
    """What a run found: measurements by cell and side, a list each with one a round."""

    titles: dict[str, str] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    broken: dict[str, list[str]] = field(default_factory=dict)
    cells: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)
    open_loops: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)
    rates: dict[str, dict[str, float]] = field(default_factory=dict)

    def texts_per_s(self, cell: str, side: str) -> float:
        """Return the median over the rounds; 0 if it was not measured."""
        found = self.cells.get(cell, {}).get(side, [])
        return median(m.requests_per_s for m in found) * texts_of(cell) if found else 0.0

    def cpu_per_1000(self, cell: str, side: str) -> float:
        """Return the server's CPU seconds per 1,000 texts, median over the rounds."""
        found = self.cells.get(cell, {}).get(side, [])
        return median(m.cpu_s_per_request for m in found) * 1000 / texts_of(cell) if found else float("nan")

    def best_peer(self, cell: str) -> str | None:
        """Return the fastest side that is neither ours nor the ceiling."""
        peers = [side for side in self.cells.get(cell, {}) if is_peer(side)]
        return max(peers, key=lambda side: self.texts_per_s(cell, side), default=None)


def is_peer(side: str) -> bool:
    """Return whether a side is one that a user could pick instead of ours."""
    return side != "ceiling" and not side.startswith("ours")


def texts_of(cell: str) -> int:
    """Return how many texts a request of this cell holds."""
    return BULK if cell.startswith("bulk") else 1


def run(
    contestants: Sequence[Contestant], cells: Sequence[Cell], shares: Sequence[float], n_rounds: int, say: Say
) -> Results:
    """Start all, measure, stop all; `shares` of its maximum are what each side is offered in open loops.

    A side that does not start or answers wrongly is left out, with its reason.
    """
    results = Results()
    try:
        _run(contestants, cells, shares, n_rounds, results, say)
    except KeyboardInterrupt:
        say("interrupted: what was measured so far follows")
    finally:
        for one in contestants:
            with contextlib.suppress(ProcessLookupError):
                one.stop()
    return results


def _run(
    contestants: Sequence[Contestant],
    cells: Sequence[Cell],
    shares: Sequence[float],
    n_rounds: int,
    results: Results,
    say: Say,
) -> None:
    running = _start(contestants, results, say)
    for turn in range(n_rounds):
        for cell in cells:
            for one in _rotated(running, turn):
                _measure(one, cell, turn, results, say)
    results.rates = _rates(running, results, shares)
    _open_loops(running, results, (n_rounds + 1) // 2, say)  # each is long enough to speak for itself


def _start(contestants: Sequence[Contestant], results: Results, say: Say) -> list[Contestant]:
    expected = equality.reference()
    running = []
    for one in contestants:
        began = time.monotonic()
        results.titles[one.name] = one.title
        try:
            results.cosines[one.name] = one.start(expected)
        except Exception as exc:  # whatever a peer fails with, the others go on
            results.left_out[one.name] = f"{type(exc).__name__}: {exc}"[:500]
            one.stop()
            say(f"{one.name}: left out: {results.left_out[one.name]}")
            continue
        running.append(one)
        say(f"{one.name}: up after {time.monotonic() - began:.0f} s, smallest cosine {results.cosines[one.name]:.6f}")
    return running


def _measure(one: Contestant, cell: Cell, turn: int, results: Results, say: Say) -> None:
    measured = _attempt(one, cell, turn, 0.0, results, say)
    if measured is None:
        return
    results.cells.setdefault(cell.name, {}).setdefault(one.name, []).append(replace(measured, turn=turn))
    say(f"round {turn + 1} {cell.name:9} {one.name:14} {_line(measured, texts_of(cell.name))}")


def _attempt(
    one: Contestant, cell: Cell, turn: int, rate_per_s: float, results: Results, say: Say
) -> Measurement | None:
    """Measure; a side that has died is said to have, and the others go on."""
    try:
        return one.run(cell, turn, rate_per_s)
    except (OSError, RuntimeError) as exc:
        results.broken.setdefault(one.name, []).append(f"round {turn + 1}, {cell.name}: {exc}"[:300])
        say(f"round {turn + 1} {cell.name:9} {one.name:14} FAILED: {exc}")
        return None


def _rates(running: Sequence[Contestant], results: Results, shares: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return each side's shares of its own maximum; and for ours, what is 80 % of the best peer's."""
    most = {one.name: results.texts_per_s(SHORT_64.name, one.name) for one in running}
    rates = {name: {f"{share:.0%}": share * speed for share in shares} for name, speed in most.items()}
    if shares and (best := results.best_peer(SHORT_64.name)) is not None:
        for side in filter(lambda name: name.startswith("ours"), rates):
            rates[side][BEST] = 0.8 * most[best]
    return rates


def _open_loops(running: Sequence[Contestant], results: Results, n_rounds: int, say: Say) -> None:
    for turn in range(n_rounds):
        for one in _rotated(running, turn):
            for name, rate in results.rates[one.name].items():
                measured = _attempt(one, _OPEN, turn, rate, results, say) if rate else None
                if measured is not None:
                    results.open_loops.setdefault(name, {}).setdefault(one.name, []).append(measured)
                    say(f"round {turn + 1} open {name:4} {one.name:14} {_line(measured, 1)}")


def _rotated(running: Sequence[Contestant], turn: int) -> list[Contestant]:
    start = turn * 2 % max(len(running), 1)
    return [*running[start:], *running[:start]]


def _line(measured: Measurement, texts: int) -> str:
    failures = f"  FAILED {dict(measured.failures)}" if measured.failures else ""
    return (
        f"{measured.requests_per_s * texts:7.1f} texts/s  p50 {measured.p50_ms:7.1f}  p99 {measured.p99_ms:7.1f} ms  "
        f"CPU s/1,000 {measured.cpu_s_per_request / texts * 1000:6.2f}  others {measured.others_cores:.2f}{failures}"
    )
