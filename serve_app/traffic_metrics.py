"""What the traffic policies count: cache, arms, fallbacks, retries, circuits, shedding, shadows.

Made by `telemetry.py` in the ingress replica's own registry; each policy is given it.
"""

from collections.abc import Callable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from deployments.types import ModelStatus

_MODEL = ("model", "version")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_KEPT = 4096
_DIFFERENCES = (0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)


class TrafficMetrics:
    """Counters of one ingress replica."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._cache = Counter(
            "model_endpoint_cache_items",
            "Items of cacheable models: hit (known), joined (under way for another request), miss (computed).",
            (*_MODEL, "result"),
            registry=registry,
        )
        self._cache_bytes = Gauge("model_endpoint_cache_bytes", "Bytes of answers kept.", registry=registry)
        self._cache_entries = Gauge("model_endpoint_cache_entries", "Answers kept.", registry=registry)
        self._cache_evicted = Counter(
            "model_endpoint_cache_evictions", "Answers thrown away for lack of room.", registry=registry
        )
        self._arms = Counter(
            "model_endpoint_arm_requests", "Requests by alias and target.", ("alias", "arm", "code"), registry=registry
        )
        self._arm_latency = Histogram(
            "model_endpoint_arm_request_seconds",
            "Time to an answer by alias and target.",
            ("alias", "arm"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._fallbacks = Counter(
            "model_endpoint_fallbacks",
            "Answers that another model, or none, gave: by the model asked, who answered, and the error it covers.",
            (*_MODEL, "by", "code"),
            registry=registry,
        )
        self._retries = Counter("model_endpoint_retries", "Requests sent again.", _MODEL, registry=registry)
        self._breaker = Gauge(
            "model_endpoint_breaker_state", "0 closed, 1 one request tries, 2 open.", _MODEL, registry=registry
        )
        self._opened = Counter(
            "model_endpoint_breaker_opened", "Times a model's circuit opened.", _MODEL, registry=registry
        )
        self._shed = Counter(
            "model_endpoint_shed_requests",
            "Requests turned away: full (too many of the model here), late (its answer would pass the deadline).",
            (*_MODEL, "reason"),
            registry=registry,
        )
        self._shadows = Counter(
            "model_endpoint_shadow_requests",
            "Shadow requests: agree, differ, dropped (too many under way), or the error's code.",
            ("alias", "shadow", "result"),
            registry=registry,
        )
        self._differences = Histogram(
            "model_endpoint_shadow_difference",
            "Difference between the answer and the shadow's, by the comparison of the alias.",
            ("alias", "shadow"),
            buckets=_DIFFERENCES,
            registry=registry,
        )
        self._shadow_latency = Histogram(
            "model_endpoint_shadow_request_seconds",
            "Time to a shadow's answer.",
            ("alias", "shadow"),
            buckets=_SECONDS,
            registry=registry,
        )

        # Of every request: looked up by labels, where `labels` checks them anew each time.
        self._cache_of = lru_cache(_KEPT)(self._cache.labels)
        self._arm_of = lru_cache(_KEPT)(self._arms.labels)
        self._arm_latency_of = lru_cache(_KEPT)(self._arm_latency.labels)

    def cache(self, model: ModelStatus, n_hits: int, n_joined: int, n_misses: int) -> None:
        """Count the items of one request to a cacheable model."""
        if n_hits:
            self._cache_of(model.name, model.version, "hit").inc(n_hits)
        if n_joined:
            self._cache_of(model.name, model.version, "joined").inc(n_joined)
        if n_misses:
            self._cache_of(model.name, model.version, "miss").inc(n_misses)

    def watch_cache(self, n_bytes: Callable[[], float], n_entries: Callable[[], float]) -> None:
        """Say where to read what the cache holds."""
        self._cache_bytes.set_function(n_bytes)
        self._cache_entries.set_function(n_entries)

    def evicted(self, n_entries: int) -> None:
        """Count answers thrown away for lack of room."""
        self._cache_evicted.inc(n_entries)

    def arm(self, alias: str, arm: str, code: str, seconds: float) -> None:
        """Count one request to an alias with several targets."""
        self._arm_of(alias, arm, code).inc()
        self._arm_latency_of(alias, arm).observe(seconds)

    def fallback(self, model: ModelStatus, by: str, code: str) -> None:
        """Count one answer that did not come from the model asked."""
        self._fallbacks.labels(model.name, model.version, by, code).inc()

    def retry(self, model: ModelStatus) -> None:
        """Count one request sent again."""
        self._retries.labels(model.name, model.version).inc()

    def breaker(self, model: ModelStatus, state: int, *, is_opened: bool) -> None:
        """Note that a circuit changed."""
        self._breaker.labels(model.name, model.version).set(state)
        if is_opened:
            self._opened.labels(model.name, model.version).inc()

    def breakers_closed(self) -> None:
        """Note that all circuits are forgotten."""
        self._breaker.clear()

    def shed(self, model: ModelStatus, reason: str) -> None:
        """Count one request turned away."""
        self._shed.labels(model.name, model.version, reason).inc()

    def shadow(self, alias: str, shadow: str, result: str, seconds: float | None = None) -> None:
        """Count one shadow request."""
        self._shadows.labels(alias, shadow, result).inc()
        if seconds is not None:
            self._shadow_latency.labels(alias, shadow).observe(seconds)

    def difference(self, alias: str, shadow: str, difference: float) -> None:
        """Observe how far a shadow's answer was from the client's."""
        self._differences.labels(alias, shadow).observe(difference)
