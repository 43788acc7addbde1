"""The endpoint's metrics: counters of this ingress replica, and one page for all replicas of endpoint and pools.

Prometheus reaches one ingress replica per scrape, so `/metrics` merges everybody's, told apart by the labels
`application` and `replica`.
"""

from collections.abc import Iterable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from deployments.metrics import ReplicaMetrics, watch_tasks
from deployments.types import ModelStatus
from serve_app.lanes import Call
from serve_app.traffic_metrics import TrafficMetrics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_KEPT = 4096
_REQUESTS = (1, 2, 4, 8, 16, 32, 64)


class IngressMetrics:
    """Counters of one ingress replica."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "model_endpoint_requests",
            "Inference requests by outcome (an error code, or ok).",
            ("model", "version", "task", "code"),
            registry=registry,
        )
        self._latency = Histogram(
            "model_endpoint_request_seconds",
            "Time from parsed request to answer.",
            ("model", "version"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._http = Counter(
            "model_endpoint_http_requests",
            "HTTP requests by route and status.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._http_latency = Histogram(
            "model_endpoint_http_request_seconds",
            "Time from the first byte read to the last byte sent.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._rpcs = Counter(
            "model_endpoint_grpc_requests", "gRPC calls by method and outcome.", ("method", "code"), registry=registry
        )
        self._rpc_latency = Histogram(
            "model_endpoint_grpc_request_seconds",
            "Time from a gRPC call's start to its end, streams included.",
            ("method",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._call_requests = Histogram(
            "model_endpoint_call_requests",
            "Requests that shared one call to a pool.",
            ("model",),
            buckets=_REQUESTS,
            registry=registry,
        )
        self.traffic = TrafficMetrics(registry)
        watch_tasks(registry)

        self._limited = Counter(
            "model_endpoint_limited_requests",
            "Requests refused by a limit.",
            ("limit", "unit"),
            registry=registry,
        )
        self._limit_store = Gauge(
            "model_endpoint_limit_store_up", "1 while the shared counters of limits answer.", registry=registry
        )
        self._limit_store_failures = Counter(
            "model_endpoint_limit_store_failures", "Calls to the shared counters that failed.", registry=registry
        )
        self._limit_store.set(1)
        self._log_lines = Counter(
            "model_endpoint_request_log_lines", "Lines of the request log written.", registry=registry
        )
        self._log_dropped = Counter(
            "model_endpoint_request_log_dropped",
            "Lines of the request log, or payloads of lines, that were dropped.",
            ("part",),
            registry=registry,
        )

        # Of every request: looked up by labels, where `labels` checks them anew each time.
        self._requests_of = lru_cache(_KEPT)(self._requests.labels)
        self._latency_of = lru_cache(_KEPT)(self._latency.labels)
        self._http_of = lru_cache(_KEPT)(self._http.labels)
        self._http_latency_of = lru_cache(_KEPT)(self._http_latency.labels)

    def request_log_written(self, n: int) -> None:
        """Count lines of the request log."""
        self._log_lines.inc(n)

    def request_log_dropped(self, part: str, n: int) -> None:
        """Count what the request log lost: a line, or the payload of one."""
        self._log_dropped.labels(part).inc(n)

    def limited(self, limit: str, unit: str) -> None:
        """Count one request refused by a limit."""
        self._limited.labels(limit, unit).inc()

    def limit_store(self, is_up: bool) -> None:
        """Say whether the shared counters answer."""
        self._limit_store.set(is_up)
        if not is_up:
            self._limit_store_failures.inc()

    def request(self, model: ModelStatus, code: str, seconds: float) -> None:
        """Count one inference request."""
        self._requests_of(model.name, model.version, model.task.value, code).inc()
        self._latency_of(model.name, model.version).observe(seconds)

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request; `route` is a path template, never a path."""
        self._http_of(method, route, status).inc()
        self._http_latency_of(route).observe(seconds)

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """Count one gRPC call; `code` is an error's, or ok."""
        self._rpcs.labels(method, code).inc()
        self._rpc_latency.labels(method).observe(seconds)

    def call(self, call: Call) -> None:
        """Count one handle call."""
        self._call_requests.labels(call.target.key).observe(len(call.requests))

    def collect(self) -> list[Metric]:
        """Return all metrics as of now."""
        return list(self._registry.collect())


class _Merged(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(replicas: Iterable[tuple[str, ReplicaMetrics]]) -> bytes:
    """Merge metrics by (application, replica) into one page of Prometheus' text format."""
    families: dict[str, Metric] = {}
    for application, replica in replicas:
        labels = {"application": application, "replica": replica.replica}
        for metric in replica.metrics:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            family.samples.extend(
                sample._replace(labels={**sample.labels, **labels})
                for sample in metric.samples
                if not sample.name.endswith("_created")  # when each counter began: a third of the page, read by nobody
            )
    return generate_latest(_Merged(families.values()))
