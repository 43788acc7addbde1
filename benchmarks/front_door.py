"""The front door: what a request costs without a model, by process, with and without each feature.

`python -m benchmarks front-door`. Every variant is the default config with one thing changed; features are only
user_config, so replicas keep running. "nothing" has no access log, no retries, no breaker, no bulkhead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import variants
from benchmarks.variants import Found, Variant, with_keys

LIMIT_US = 600.0  # of issue 3: all processes together, default policies, 64 connections
_NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("retries", "breaker", "bulkhead")),
    "access_log": False,
    "fallbacks": {},
}
_LIMITS = {"rules": [{"name": "bench", "per": ["principal", "model"], "requests": {"per_s": 1e6, "burst": 1e6}}]}


def features() -> list[Variant]:
    """Return the default, nothing, and the default with one feature off or on."""
    return [
        Variant("default"),
        Variant("nothing", _NOTHING),
        Variant("without access log", {"access_log": False}),
        Variant("without retries", {"retries": None}),
        Variant("without breaker", {"breaker": None}),
        Variant("without bulkhead", {"bulkhead": None}),
        with_keys("with API keys", 10),
        Variant("with a rate limit", {"limits": _LIMITS}),
    ]


def run(n_rounds: int, say: variants.Say) -> list[Found]:
    """Measure all of them at one and at 64 connections."""
    return variants.run(features(), (1, 64), n_rounds, say)


def verdict(found: Sequence[Found]) -> str:
    """Return the default's cost beside the bar."""
    (default,) = [one for one in found if (one.name, one.connections) == ("default", 64)]
    is_met = "met" if default.total_us <= LIMIT_US else "NOT MET"
    return f"default, 64 connections: {default.total_us:.0f} µs CPU a request; bar ≤ {LIMIT_US:.0f}: {is_met}"
