"""What a run leaves behind: a table in text, a plot in SVG, everything as JSON with machine and versions.

Called by `__main__`. Ratios to the best peer stand beside the bars of issue 3, met or not.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bars import Bar
from benchmarks.endtoend import Results
from benchmarks.plot import Series, bars_svg

BUSY_CORES = 0.2  # more than this taken by others, and a figure is marked


def table(results: Results) -> str:
    """Return one line a side: texts/s in each cell, CPU seconds per 1,000 short texts, p50 at one connection."""
    cells = list(results.cells)
    head = ["", *cells, "CPU s/1,000 short@64", "p50 ms short@1"]
    rows = [[*_row(results, side, cells)] for side in results.titles if side not in results.left_out]
    text = [aligned([head, *rows])]
    text += [f"left out: {side}: {why}" for side, why in results.left_out.items()]
    text += [f"broke: {side}: {why[0]} ({len(why)} times)" for side, why in results.broken.items()]
    if (busy := others_cores(results)) > BUSY_CORES:
        text.append(f"NOTE: others kept {busy:.2f} cores busy (median over all measurements): trust ratios only")
    return "\n".join(text)


def open_table(results: Results) -> str:
    """Return the open loops: p50 and p99 from the scheduled arrival, at the rate offered."""
    head = ["", "share", "offered/s", "done/s", "p50 ms", "p99 ms"]
    rows = []
    for share, sides in results.open_loops.items():
        for side, found in sides.items():
            values = [results.rates[side][share], *_medians(found, "requests_per_s", "p50_ms", "p99_ms")]
            rows.append([results.titles[side], share, *(f"{value:.1f}" for value in values)])
    return aligned([head, *sorted(rows)])


def bars_table(bars: Sequence[Bar]) -> str:
    """Return each bar with what was found."""
    rows = [[bar.text, f"{bar.found:.2f}", bar.wanted, "met" if bar.is_met else "NOT MET"] for bar in bars]
    return aligned([["bar", "found", "wanted", ""], *rows])


def plot(results: Results) -> str:
    """Return an SVG of texts/s by cell and side."""
    series = [
        Series(results.titles[side], [results.texts_per_s(cell, side) for cell in results.cells])
        for side in results.titles
        if side not in results.left_out
    ]
    return bars_svg("texts a second (median of the rounds)", list(results.cells), series)


def others_cores(results: Results) -> float:
    """Return how many cores others kept busy, median over all measurements of a server."""
    found = [m.others_cores for sides in results.cells.values() for name in sides for m in sides[name]]
    return median(found) if found else 0.0


def save(folder: Path, name: str, content: dict[str, Any], svg: str | None = None) -> Path:
    """Write `<time>-<name>.json`, and the plot beside it; return the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(_without_nan(content), indent=1))
    if svg is not None:
        (folder / f"{stem}.svg").write_text(svg)
    return path


def as_json(results: Results) -> dict[str, Any]:
    """Return everything that was measured."""
    return asdict(results)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as columns of equal width, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _row(results: Results, side: str, cells: Sequence[str]) -> list[str]:
    speeds = [results.texts_per_s(cell, side) for cell in cells]
    p50 = _medians(results.cells.get("short@1", {}).get(side, []), "p50_ms")[0]
    return [
        results.titles[side],
        *(f"{speed:.0f}" if speed else "-" for speed in speeds),
        _number(results.cpu_per_1000("short@64", side)),
        _number(p50),
    ]


def _medians(found: Sequence[Any], *names: str) -> list[float]:
    return [median(getattr(m, name) for m in found) if found else math.nan for name in names]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
