"""What Triton calls statistics: true counters of each model since its replica started, which clients difference.

Counted by `deployments.metrics`, merged over replicas by `deployments.catalog`, shown by `serve_app.protocols`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

from deployments.types import Timings


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count one occurrence."""
        self.count += 1
        self.ns += round(seconds * 1e9)

    def merge(self, other: "Duration") -> None:
        """Add what another replica counted."""
        self.count += other.count
        self.ns += other.ns


@dataclass(slots=True)
class ModelStatistics:
    """One model version. `inference_count` is items, `execution_count` batches; `batches` is their run time by size.

    A request goes through queue, compute_input (prepare), compute_infer (run) and compute_output (finish); `success`
    and `fail` are whole requests.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, Duration] = field(default_factory=dict)

    def merge(self, other: "ModelStatistics") -> None:
        """Add what another replica counted."""
        self.last_inference_ms = max(self.last_inference_ms, other.last_inference_ms)
        self.inference_count += other.inference_count
        self.execution_count += other.execution_count
        for name in _DURATIONS:
            getattr(self, name).merge(getattr(other, name))
        for n_items, duration in other.batches.items():
            self.batches.setdefault(n_items, Duration()).merge(duration)


_DURATIONS = tuple(f.name for f in fields(ModelStatistics) if f.default_factory is Duration)


class Statistics:
    """The statistics of one replica, by `name:version`. `wall` gives the time of day."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self.models: dict[str, ModelStatistics] = {}

    def batch(self, key: str, n_items: int, run_s: float) -> None:
        """Count one batch that ran."""
        model = self._of(key)
        model.inference_count += n_items
        model.execution_count += 1
        model.last_inference_ms = round(self._wall() * 1e3)
        model.batches.setdefault(n_items, Duration()).add(run_s)

    def succeeded(self, key: str, timings: Timings, seconds: float) -> None:
        """Count one answered request."""
        model = self._of(key)
        model.success.add(seconds)
        model.queue.add(timings.queue_s)
        model.compute_input.add(timings.prepare_s)
        model.compute_infer.add(timings.run_s)
        model.compute_output.add(timings.finish_s)

    def failed(self, key: str, seconds: float) -> None:
        """Count one request that got an error."""
        self._of(key).fail.add(seconds)

    def _of(self, key: str) -> ModelStatistics:
        model = self.models.get(key)
        if model is None:
            model = self.models[key] = ModelStatistics()
        return model


def merged(replicas: Iterable[dict[str, ModelStatistics]]) -> dict[str, ModelStatistics]:
    """Return the sums over replicas, by `name:version`."""
    total: dict[str, ModelStatistics] = {}
    for replica in replicas:
        for key, statistics in replica.items():
            total.setdefault(key, ModelStatistics()).merge(statistics)
    return total
