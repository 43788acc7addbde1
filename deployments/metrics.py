"""Every metric of a pool, in one table. Each replica keeps its own registry; the ingress merges them at /metrics."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric

from deployments.batches import BatchRecord
from deployments.generation import StepReport
from deployments.spec import ModelSpec
from deployments.statistics import Statistics
from deployments.types import ModelStatus, Timings, Usage

_MODEL = ("model", "version")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PHASES = [(phase, attrgetter(f"{phase}_s")) for phase in ("load", "prepare", "queue", "run", "finish")]
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class ReplicaMetrics:
    """The metrics of one replica, by its id."""

    replica: str
    metrics: list[Metric]


@dataclass(frozen=True, slots=True)
class MemoryNow:
    """What a replica's residency says at the moment; `held` and `peaks` by model key."""

    budget_bytes: int
    ram_bytes: int
    parked_bytes: int
    held: Mapping[str, int]  # requests that wait for a load
    peaks: Mapping[str, int]  # bytes that the largest batch took beside the weights


def watch_tasks(registry: CollectorRegistry) -> None:
    """Have the tasks of the running event loop counted when the registry is read: what is left behind shows."""
    tasks = Gauge("model_endpoint_tasks", "Tasks on the event loop of a replica.", registry=registry)
    tasks.set_function(_n_tasks)


class PoolMetrics:
    """Counters of one replica; gauges are read from its state when asked."""

    def __init__(self) -> None:
        self.statistics = Statistics(time.time)
        self._registry = registry = CollectorRegistry()
        self._batch_items = Histogram(
            "model_endpoint_batch_items", "Items in a batch.", _MODEL, buckets=_ITEMS, registry=registry
        )
        self._batch_run = Histogram(
            "model_endpoint_batch_run_seconds", "Time a batch ran.", _MODEL, buckets=_SECONDS, registry=registry
        )
        self._tokens = Counter("model_endpoint_batch_tokens", "Tokens run.", _MODEL, registry=registry)
        self._padded = Counter(
            "model_endpoint_batch_padded_tokens", "Tokens run, padding included.", _MODEL, registry=registry
        )
        self._failures = Counter(
            "model_endpoint_item_failures", "Items the model itself failed on.", _MODEL, registry=registry
        )
        self._phase = Histogram(
            "model_endpoint_phase_seconds",
            "Time a request spent in each phase of the pool.",
            (*_MODEL, "phase"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._phase_of = lru_cache(_KEPT)(self._phase.labels)  # of every request: `labels` checks them anew each time
        self._step = Histogram(
            "model_endpoint_step_seconds",
            "One step of a generating model.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "model_endpoint_prompt_tokens", "Prompt tokens computed.", _MODEL, registry=registry
        )
        self._new_tokens = Counter("model_endpoint_generated_tokens", "Tokens generated.", _MODEL, registry=registry)
        self._first_token = Histogram(
            "model_endpoint_first_token_seconds",
            "Time until a request's first token.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self._token_time = Histogram(
            "model_endpoint_token_seconds",
            "Time a token after the first one, mean of a request.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self._preempted = Counter(
            "model_endpoint_preemptions", "Sequences sent back to wait by a full cache.", _MODEL, registry=registry
        )
        self._sequences = Gauge("model_endpoint_running_sequences", "Sequences under way.", _MODEL, registry=registry)
        self._cache = Gauge(
            "model_endpoint_cache_tokens", "Tokens whose keys and values are kept.", _MODEL, registry=registry
        )
        self._loads = Counter("model_endpoint_loads", "Loads by outcome.", (*_MODEL, "outcome"), registry=registry)
        self._load_time = Histogram(
            "model_endpoint_load_seconds", "Time a load took.", _MODEL, buckets=_SECONDS, registry=registry
        )
        self._parks = Counter("model_endpoint_parks", "Models moved into host RAM.", _MODEL, registry=registry)
        self._unpark_time = Histogram(
            "model_endpoint_unpark_seconds",
            "Time a model took to come back from host RAM.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self._unloads = Counter("model_endpoint_unloads", "Models evicted or removed.", _MODEL, registry=registry)
        self._queue = Gauge("model_endpoint_queue_items", "Items waiting.", _MODEL, registry=registry)
        self._state = Gauge(
            "model_endpoint_model_state", "1 for the state a model is in.", (*_MODEL, "state"), registry=registry
        )
        self._resident = Gauge("model_endpoint_resident_bytes", "Bytes a model holds.", _MODEL, registry=registry)
        self._budget = Gauge("model_endpoint_budget_bytes", "Bytes models may hold together.", registry=registry)
        self._ram = Gauge("model_endpoint_ram_budget_bytes", "Bytes parked models may take.", registry=registry)
        self._parked_bytes = Gauge("model_endpoint_parked_bytes", "Bytes parked models take.", registry=registry)
        self._held = Gauge("model_endpoint_held_requests", "Requests that wait for a load.", _MODEL, registry=registry)
        self._peak = Gauge(
            "model_endpoint_activation_peak_bytes",
            "Bytes the largest batch took beside the weights.",
            _MODEL,
            registry=registry,
        )
        self._rejected = Gauge("model_endpoint_rejected_entries", "Configuration entries refused.", registry=registry)
        watch_tasks(registry)

    def batch(self, spec: ModelSpec, record: BatchRecord) -> None:
        """Count one batch."""
        labels = (spec.name, spec.version)
        if record.is_failed:
            self._failures.labels(*labels).inc(record.n_items)
            return
        self._batch_items.labels(*labels).observe(record.n_items)
        self._batch_run.labels(*labels).observe(record.run_s)
        self._tokens.labels(*labels).inc(record.n_tokens)
        self._padded.labels(*labels).inc(record.padded_tokens)
        self.statistics.batch(spec.key, record.n_items, record.run_s)

    def step(self, spec: ModelSpec, report: StepReport, step_s: float) -> None:
        """Count one step of a generating model."""
        labels = (spec.name, spec.version)
        self._step.labels(*labels).observe(step_s)
        self._prompt_tokens.labels(*labels).inc(report.prompt_tokens)
        self._new_tokens.labels(*labels).inc(report.new_tokens)
        self._preempted.labels(*labels).inc(report.n_preempted)
        self._sequences.labels(*labels).set(report.n_running)
        self._cache.labels(*labels).set(report.cache_tokens)

    def generated(self, spec: ModelSpec, usage: Usage, timings: Timings) -> None:
        """Count one request that was answered token by token."""
        labels = (spec.name, spec.version)
        self._first_token.labels(*labels).observe(timings.load_s + timings.prepare_s + timings.queue_s)
        if usage.n_output_tokens > 1:
            self._token_time.labels(*labels).observe(timings.run_s / (usage.n_output_tokens - 1))
        self.statistics.batch(spec.key, usage.n_items, timings.run_s)

    def request(self, spec: ModelSpec, timings: Timings, seconds: float) -> None:
        """Count one answered request and its phases."""
        for phase, seconds_of in _PHASES:
            self._phase_of(spec.name, spec.version, phase).observe(seconds_of(timings))
        self.statistics.succeeded(spec.key, timings, seconds)

    def loaded(self, spec: ModelSpec, seconds: float, *, is_failed: bool) -> None:
        """Count one load."""
        self._loads.labels(spec.name, spec.version, "failure" if is_failed else "success").inc()
        self._load_time.labels(spec.name, spec.version).observe(seconds)

    def parked(self, spec: ModelSpec) -> None:
        """Count one model moved into host RAM."""
        self._parks.labels(spec.name, spec.version).inc()

    def unparked(self, spec: ModelSpec, seconds: float) -> None:
        """Count one model that came back from host RAM."""
        self._unpark_time.labels(spec.name, spec.version).observe(seconds)

    def unloaded(self, spec: ModelSpec) -> None:
        """Count one unload."""
        self._unloads.labels(spec.name, spec.version).inc()

    def collect(
        self, statuses: Iterable[ModelStatus], queues: dict[str, int], memory: MemoryNow, n_rejected: int
    ) -> list[Metric]:
        """Return all metrics as of now; `queues` is waiting items by model key."""
        for gauge in (self._queue, self._state, self._resident, self._held, self._peak):
            gauge.clear()
        for status in statuses:
            labels = (status.name, status.version)
            self._queue.labels(*labels).set(queues.get(status.key, 0))
            self._state.labels(*labels, status.state.value).set(1)
            self._resident.labels(*labels).set(status.size_bytes)
            self._held.labels(*labels).set(memory.held.get(status.key, 0))
            self._peak.labels(*labels).set(memory.peaks.get(status.key, 0))
        self._budget.set(memory.budget_bytes)
        self._ram.set(memory.ram_bytes)
        self._parked_bytes.set(memory.parked_bytes)
        self._rejected.set(n_rejected)
        return list(self._registry.collect())


def _n_tasks() -> float:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # read from another thread
        return 0.0
