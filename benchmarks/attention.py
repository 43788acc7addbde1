"""Attention of long texts by numpy's BLAS beside torch's own kernel: microseconds a text, and CPU of whole batches.

    python -m benchmarks.attention [--dtype bfloat16] [--rounds 7]

all-MiniLM-L6-v2's 12 heads of 32, one thread; rounds are interleaved and medians shown. OPENBLAS_CORETYPE, where it is
set, chooses OpenBLAS's kernels: which it runs is said first.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from threadpoolctl import threadpool_info
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.packing import batches, made_up, minilm
from benchmarks.workload import n_tokens
from deployments.engines import blas_attention, set_up_process
from deployments.engines.base import Engine
from deployments.types import Item

_LENGTHS = (32, 48, 64, 96, 128, 192, 256, 512)
_HEADS, _D = 12, 32
_REPEATS = 20
_BATCHES = 16
_WAYS = {"torch": False, "numpy": True}


def by_torch(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Attend as `packed_attention` does otherwise: (tokens, heads, d) to the same."""
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in tensors)
    return scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).contiguous()


def by_numpy(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Attend by numpy's BLAS."""
    return blas_attention.one_by_one(tensors, 1, None)


def alone(length: int, rounds: int) -> list[float]:
    """Return microseconds a text of this length, by torch and by numpy, everything in the caches."""
    tensors = torch.randn(length, 3, _HEADS, _D).unbind(1)
    torch.testing.assert_close(by_numpy(tensors), by_torch(tensors), atol=1e-5, rtol=1e-4)
    ways: list[Callable[[], object]] = [lambda: by_torch(tensors), lambda: by_numpy(tensors)]
    return medians(ways, rounds, _REPEATS, 1 / _REPEATS)


def within(engine: Engine, some: Sequence[list[Item]], rounds: int) -> list[float]:
    """Return CPU microseconds a token of whole batches, with attention by torch and by numpy."""

    def run(*, by_blas: bool) -> None:
        blas_attention.is_better = lambda: by_blas
        for items in some:
            engine.run(items)

    cost = sum(item.cost for items in some for item in items)
    return medians([lambda b=by_blas: run(by_blas=b) for by_blas in _WAYS.values()], rounds, 1, 1 / cost)  # type: ignore[misc]


def medians(ways: Sequence[Callable[[], object]], rounds: int, repeats: int, share: float) -> list[float]:
    """Return each way's CPU microseconds times `share`, after one round that does not count."""
    taken: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for seconds, way in zip(taken, ways, strict=True):
            began = time.thread_time()
            for _ in range(repeats):
                way()
            seconds.append(time.thread_time() - began)
    return [statistics.median(seconds[1:]) * share * 1e6 for seconds in taken]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    set_up_process(1)
    kernels = {one.get("architecture") for one in threadpool_info() if one["user_api"] == "blas"}
    print(f"OpenBLAS runs {', '.join(map(str, kernels))}; taken here: {blas_attention.is_better()}")
    print(f"{'':28}" + "".join(f"{way:>9}" for way in _WAYS) + f"{'ratio':>9}")
    rows = {f"{length} tokens, µs a text": lambda n=length: alone(n, args.rounds) for length in _LENGTHS}
    chance = random.Random(7)
    some = batches([made_up(chance, n_tokens("mixed", chance)) for _ in range(_BATCHES * 32)])
    engine = minilm(packing=True, dtype=args.dtype)
    rows["mixed batches, µs a token"] = lambda: within(engine, some, args.rounds)
    with torch.inference_mode():
        for title, measure in rows.items():
            torchs, numpys = measure()  # type: ignore[no-untyped-call]
            print(f"{title:28}{torchs:9.1f}{numpys:9.1f}{torchs / numpys:9.2f}", flush=True)


if __name__ == "__main__":
    main()
