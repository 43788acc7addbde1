"""The front door: what a request costs without a model, by process, with and without each feature.

`python -m benchmarks front-door`. Every variant is the default config with one thing changed; features are only
user_config, so replicas keep running. "nothing" has no access log, no retries, no breaker, no bulkhead.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import variants
from benchmarks.variants import Found, Variant, with_keys

LIMIT_US = 600.0  # of issue 3: all processes together, default policies, 64 connections
LOG_LIMIT = 1.03  # of the access log, to the default without it
_DEFAULT, _NO_LOG = "default", "without access log"
_NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("retries", "breaker", "bulkhead")),
    "access_log": False,
    "fallbacks": {},
}
_LIMITS = {"rules": [{"name": "bench", "per": ["principal", "model"], "requests": {"per_s": 1e6, "burst": 1e6}}]}


def features() -> list[Variant]:
    """Return the default, nothing, and the default with one feature off or on."""
    return [
        Variant(_DEFAULT),
        Variant("nothing", _NOTHING),
        Variant(_NO_LOG, {"access_log": False}),
        Variant("without retries", {"retries": None}),
        Variant("without breaker", {"breaker": None}),
        Variant("without bulkhead", {"bulkhead": None}),
        with_keys("with API keys", 10),
        Variant("with a rate limit", {"limits": _LIMITS}),
    ]


def run(n_rounds: int, say: variants.Say, names: Sequence[str] = ()) -> list[Found]:
    """Measure those of `names`, or all of them at one and at 64 connections."""
    chosen = [one for one in features() if one.name in names]
    return variants.run(chosen or features(), (64,) if chosen else (1, 64), n_rounds, say)


def verdict(found: Sequence[Found]) -> Iterator[str]:
    """Yield the default's cost, and the access log's, beside the bars."""
    cost = {one.name: one.total_us for one in found if one.connections == 64}
    default, without = cost.get(_DEFAULT), cost.get(_NO_LOG)
    if default is not None:
        is_met = _met(default <= LIMIT_US)
        yield f"default, 64 connections: {default:.0f} µs CPU a request; bar ≤ {LIMIT_US:.0f}: {is_met}"
    if default is not None and without is not None:
        ratio = default / without
        yield f"the same ÷ without access log: {ratio:.3f}; bar ≤ {LOG_LIMIT}: {_met(ratio <= LOG_LIMIT)}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "NOT MET"
