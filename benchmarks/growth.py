"""Growth: what a request costs with 1 and 1,000 models configured, 1 and 1,000 keys, more and more replicas.

`python -m benchmarks growth`. CPU of all processes a request, median of interleaved rounds, at 64 connections.
"""

import os
from collections.abc import Iterator, Sequence

from benchmarks import variants
from benchmarks.variants import Found, Variant, with_keys

LIMIT = 1.10  # of issue 3, for models


def steps() -> list[list[Variant]]:
    """Return a series of variants for each thing that grows."""
    most = 8 if (os.cpu_count() or 1) >= 8 else 4
    return [
        [Variant(f"{n} models", n_models=n) for n in (1, 100, 1000)],
        [with_keys(f"{n} keys", n) for n in (1, 1000)],
        [Variant(f"{n} replicas", n_replicas=n) for n in (1, 2, 4, 8) if n <= most],
    ]


def run(n_rounds: int, say: variants.Say) -> list[Found]:
    """Measure every series, one cluster each."""
    return [found for series in steps() for found in variants.run(series, (64,), n_rounds, say)]


def verdict(found: Sequence[Found]) -> Iterator[str]:
    """Return each series' growth of the cost beside the bar."""
    cost = {one.name: one.total_us for one in found}
    for first, last in (("1 models", "1000 models"), ("1 keys", "1000 keys")):
        ratio = cost[last] / cost[first]
        yield f"{last} ÷ {first}: {ratio:.2f}; bar ≤ {LIMIT:.2f}: {'met' if ratio <= LIMIT else 'NOT MET'}"
