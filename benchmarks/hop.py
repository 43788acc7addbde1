"""What crossing the hop costs in pickling: requests and results one by one, against packed (`deployments.hop`).

python -m benchmarks.hop
"""

import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from deployments.hop import pack_outcomes, pack_requests, unpack_outcomes, unpack_requests
from deployments.types import InferRequest, InferResult, Timings, Usage, text_array

N = 32


def best_us(work: Callable[[], Any], repeat: int = 7, times: int = 200) -> float:
    """Return CPU microseconds of one call, the best of several rounds."""
    best = float("inf")
    for _ in range(repeat):
        started = time.process_time()
        for _ in range(times):
            work()
        best = min(best, time.process_time() - started)
    return best / times * 1e6


def loads(pickled: bytes) -> Any:
    """Unpickle what this script has pickled."""
    return pickle.loads(pickled)  # noqa: S301


def main() -> None:
    """Measure and print a table."""
    requests = [
        InferRequest(
            "minilm", {"text": text_array([f"a short text, number {i}"])}, "1", timeout_s=30.0, request_id=f"{i:032}"
        )
        for i in range(N)
    ]
    vectors = np.random.default_rng(0).standard_normal((N, 1, 384), dtype=np.float32)
    results = [InferResult("minilm", "1", {"embedding": v}, Usage(1, 11), Timings(0, 0.1, 0.2, 0.3)) for v in vectors]
    ways: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
        "requests, one by one": (requests, lambda r: r, lambda r: r),
        "requests, packed": (requests, lambda r: pack_requests(r, [30.0] * N), unpack_requests),
        "results, one by one": (results, lambda r: r, lambda r: r),
        "results, packed": (results, pack_outcomes, unpack_outcomes),
    }
    print(f"{'CPU us a request':24}{'to bytes':>10}{'from bytes':>12}{'bytes':>8}")
    for name, (values, pack, unpack) in ways.items():
        pickled = pickle.dumps(pack(values))
        there = best_us(lambda v=values, p=pack: pickle.dumps(p(v))) / N  # type: ignore[misc]
        back = best_us(lambda p=pickled, u=unpack: u(loads(p))) / N  # type: ignore[misc]
        print(f"{name:24}{there:10.1f}{back:12.1f}{len(pickled) // N:8}")


if __name__ == "__main__":
    main()
