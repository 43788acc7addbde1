"""Generation: ours over HTTP, `transformers serve` (continuous batching) over HTTP, and a bare `generate_batch`.

    python -m benchmarks.generation [--loads 1 8 32] [--tokens 24] [--rounds 2] [--sides ours serve generate_batch]

The same model (SmolLM2-135M in float32), prompts and machine; greedy. In each round all sides run at every load, one
after the other; a peer that is not being measured stands still. Texts must be equal. Time to first token and time a
token are of streamed chat completions (`generate_batch` does not stream: its first token is its last); tokens/s counts
all streams; CPU is that of the side's own processes. What the endpoint adds to the first token is what a request took
beyond the model's own step for it; a bare `generate` of one token, in turn with it, stands beside. Results are kept
as JSON with machine and versions, and issue 7's bars.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from benchmarks.bars import Bar
from benchmarks.generators import SIDES, GenerateBatch, Ours, TransformersServe, model_folder
from benchmarks.machine import describe
from benchmarks.processes import cpu_seconds
from benchmarks.report import aligned, bars_table, save
from benchmarks.side import STATE

N_FIRST = 15  # pairs of first tokens


@dataclass(frozen=True)
class Cell:
    """One side at one load in one round."""

    side: str
    load: int
    tokens_per_s: float
    cpu_s_per_token: float
    first_token_p50_ms: float
    first_token_p99_ms: float
    token_p50_ms: float  # mean time a token of a stream
    token_p99_ms: float
    gap_p99_ms: float  # between two pieces of a stream
    peak_mib: float


def measure(side: Any, load: int, n_tokens: int, count: Callable[[str], int]) -> tuple[Cell, list[str]]:
    side.freeze(False)
    before, began = sum(cpu_seconds(side.processes()).values()), time.perf_counter()
    told = side.run(load, n_tokens)
    seconds = time.perf_counter() - began
    cpu_s = sum(cpu_seconds(side.processes()).values()) - before
    side.freeze(True)
    total = sum(count(one.text) for one in told)
    first = [one.times[0] - one.sent for one in told]
    means = [(one.times[-1] - one.times[0]) / max(count(one.text) - 1, 1) for one in told]
    gaps = [later - earlier for one in told for earlier, later in pairwise(one.times)]
    figures = (*middle_and_tail(first), *middle_and_tail(means), middle_and_tail(gaps)[1])
    cell = Cell(
        side.name,
        load,
        round(total / seconds, 2),
        round(cpu_s / total, 4),
        *(round(1e3 * value, 1) for value in figures),
        round(side.peak_mib(), 0),
    )
    return cell, [one.text for one in told]


def middle_and_tail(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values) or [0.0]
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def first_token(ours: Ours, bare: GenerateBatch) -> dict[str, float]:
    """Return medians of the first token over HTTP, of what lay outside the model's own step, and of a bare model's."""
    found: list[tuple[float, float, float]] = []
    for _ in range(N_FIRST):
        bare.freeze(False)
        theirs = bare.first_token_s()
        bare.freeze(True)
        steps_s = ours.step_s()
        (told,) = ours.run(1, 1)
        seconds = told.times[0] - told.sent
        found.append((seconds, seconds - (ours.step_s() - steps_s), theirs))
    ours_s, added_s, bare_s = (statistics.median(column) for column in zip(*found, strict=True))
    return {"ours_ms": 1e3 * ours_s, "added_ms": 1e3 * added_s, "bare_generate_ms": 1e3 * bare_s}


def bars(cells: Sequence[Cell], first: dict[str, float] | None) -> list[Bar]:
    """Return the bars of issue 7 that these figures say something about; ratios are medians of those of each round."""

    def ratio(load: int, peer: str) -> float | None:
        mine, theirs = (
            [cell.tokens_per_s for cell in cells if (cell.side, cell.load) == (side, load)]
            for side in (Ours.name, peer)
        )
        return statistics.median(a / b for a, b in zip(mine, theirs, strict=True)) if theirs and mine else None

    found = []
    for load in sorted({cell.load for cell in cells}):
        for peer, wanted in ((TransformersServe.name, 1.0), (GenerateBatch.name, 0.9)):
            if (value := ratio(load, peer)) is not None and (peer == TransformersServe.name or load == 32):
                found.append(Bar(f"{load} streams: tokens/s ÷ {peer}'s", value, wanted))
    if first:
        found.append(Bar("1 stream: ms added to the first token", first["added_ms"], 10, at_least=False))
    return found


def table(cells: Sequence[Cell]) -> str:
    """Return a line a side and load, medians of the rounds."""
    head = ["", "streams", "tokens/s", "CPU ms/token", "first p50 ms", "p99", "token p50 ms", "p99", "gap p99", "MiB"]
    rows = []
    for side, load in dict.fromkeys((cell.side, cell.load) for cell in cells):
        values = [list(asdict(cell).values())[2:] for cell in cells if (cell.side, cell.load) == (side, load)]
        middle = [statistics.median(column) for column in zip(*values, strict=True)]
        middle[1] *= 1e3
        rows.append([side, str(load), *(f"{value:.1f}" for value in middle)])
    return aligned([head, *sorted(rows, key=lambda row: int(row[1]))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    from transformers import AutoTokenizer

    folder = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sides: dict[str, Any] = {}
    cells: list[Cell] = []
    equal: list[bool] = []
    first = None
    try:
        for kind in args.sides:
            side = sides[kind] = SIDES[kind](folder)
            side.run(1, 4)
            side.freeze(True)
        if "ours" in sides and "generate_batch" in sides:
            first = first_token(sides["ours"], sides["generate_batch"])
            print(json.dumps(first), flush=True)
        for _ in range(args.rounds):
            for load in args.loads:
                texts: dict[str, list[str]] = {}
                for side in sides.values():
                    cell, texts[side.name] = measure(side, load, args.tokens, lambda t: len(tokenizer(t)["input_ids"]))
                    cells.append(cell)
                    print(json.dumps(asdict(cell)), flush=True)
                equal += [len(set(one)) == 1 for one in zip(*texts.values(), strict=True)]
    finally:
        for side in sides.values():
            side.stop()
    found = bars(cells, first)
    print(table(cells), f"{sum(equal)} of {len(equal)} texts equal on all sides", bars_table(found), sep="\n\n")
    content = {
        "machine": describe(),
        "cells": [asdict(cell) for cell in cells],
        "equal": equal,
        "first_token": first,
        "bars": [asdict(bar) for bar in found],
    }
    print(save(STATE / "results", "generation", content))


if __name__ == "__main__":
    main()
