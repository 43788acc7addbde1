"""Batches of ever new lengths: CPU a token and memory kept, with totals rounded up (`products.even`) and as they come.

    python -m benchmarks.shapes [--dtype bfloat16] [--rounds 2]

all-MiniLM-L6-v2, one thread, without a server; each way in processes of its own, for what oneDNN has made it keeps.
"""

import argparse
import json
import os
import random
import subprocess
import sys

from benchmarks.packing import cpu_s, made_up, minilm
from benchmarks.workload import n_tokens
from deployments.engines import products, set_up_process
from deployments.engines.base import Engine
from deployments.types import Item

WAYS = ("as they come", "rounded up")
_BATCHES = {"short": (360, 15), "mixed": (120, 14)}  # how many, and texts in each on average


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help="measure this one here, and tell as JSON")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measured(args.dtype, args.way)))
        return
    for turn in range(args.rounds):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.shapes", "--dtype", args.dtype, "--way", way]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for kind, (micros, grown) in json.loads(told.splitlines()[-1]).items():
                print(f"round {turn + 1}  {way:14}{kind:8}{micros:8.1f} µs a token   RSS +{grown:.0f} MiB", flush=True)


def measured(dtype: str, way: str) -> dict[str, tuple[float, float]]:
    """Return microseconds a token and the MiB kept since the model was loaded, by kind of batch."""
    set_up_process(1)
    if way == WAYS[0]:
        products.even = lambda n_rows: n_rows
    engine = minilm(packing=True, dtype=dtype)
    before, chance = resident_mib(), random.Random(7)
    found = {}
    for kind, (n_batches, n_texts) in _BATCHES.items():
        some = [batch(chance, kind, chance.randint(n_texts // 2, n_texts * 3 // 2)) for _ in range(n_batches)]
        cost = sum(item.cost for items in some for item in items)
        found[kind] = (cpu_s(lambda b=some: run(engine, b)) / cost * 1e6, resident_mib() - before)  # type: ignore[misc]
    return found


def run(engine: Engine, some: list[list[Item]]) -> None:
    """Run every batch once."""
    for items in some:
        engine.run(items)


def batch(chance: random.Random, kind: str, n: int) -> list[Item]:
    """Return `n` made-up texts of the lengths that `benchmarks.workload` has."""
    return [made_up(chance, n_tokens(kind, chance)) for _ in range(n)]


def resident_mib() -> float:
    """Return the process's memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
