"""Triton's statistics extension: true counters of each model, summed over its replicas.

Called through its rows, with what the pools have counted. perf_analyzer takes differences of these. `v2_grpc` writes
the same figures as protobuf.
"""

from functools import partial

from pydantic import BaseModel

from deployments.statistics import Duration as Counter
from deployments.statistics import ModelStatistics
from deployments.types import ModelStatus
from serve_app.protocols.json_body import dump
from serve_app.protocols.types import Action, Counted, Endpoint, Models, RawRequest, Reply
from serve_app.protocols.v2_errors import MODEL, V2, VERSION

_NOTHING = ModelStatistics()
_ZERO = {"count": 0, "ns": 0}


class Duration(BaseModel):
    """How often, and how long in all."""

    count: int
    ns: int


class Phases(BaseModel):
    """Requests by outcome, and those answered by phase."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchLine(BaseModel):
    """Batches of one size; only their run is timed."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class MemoryLine(BaseModel):
    """Memory a model holds."""

    type: str
    id: int
    byte_size: int


class StatisticsLine(BaseModel):
    """One version of a model since its replicas started."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: Phases
    response_stats: dict[str, Phases]
    batch_stats: list[BatchLine]
    memory_usage: list[MemoryLine]


class StatisticsReply(BaseModel):
    """Statistics of the models asked for."""

    model_stats: list[StatisticsLine]


def statistics(raw: RawRequest, models: Models, counted: Counted) -> Reply:
    """Answer `GET /v2/models[/{model}[/versions/{version}]]/stats`."""
    asked = asked_for(raw.path.get("model", ""), raw.path.get("version"), models)
    return Reply(dump({"model_stats": [line(model, counted) for model in asked]}))


def asked_for(name: str, version: str | None, models: Models) -> tuple[ModelStatus, ...]:
    """Return the model versions a request for statistics means: all, those of a name, or one. Raises ModelNotFound."""
    if not name:
        return models.all()
    if version or ":" in name:
        return (models.resolve(name, version),)
    return tuple(models.resolve(name, version) for version in models.versions(name))


def line(model: ModelStatus, counted: Counted) -> dict[str, object]:
    """Return the statistics of one model version as JSON members."""
    of = counted.get(model.key, _NOTHING)
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": of.last_inference_ms,
        "inference_count": of.inference_count,
        "execution_count": of.execution_count,
        "inference_stats": {
            "success": _duration(of.success),
            "fail": _duration(of.fail),
            "queue": _duration(of.queue),
            "compute_input": _duration(of.compute_input),
            "compute_infer": _duration(of.compute_infer),
            "compute_output": _duration(of.compute_output),
            "cache_hit": _ZERO,
            "cache_miss": _ZERO,
        },
        "response_stats": {},
        "batch_stats": [
            {"batch_size": n, "compute_input": _ZERO, "compute_infer": _duration(ran), "compute_output": _ZERO}
            for n, ran in sorted(of.batches.items())
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": model.size_bytes}] if model.size_bytes else [],
    }


def _duration(counter: Counter) -> dict[str, int]:
    return {"count": counter.count, "ns": counter.ns}


_stats = partial(Endpoint, action=Action.READ, dialect=V2, count=statistics, response=StatisticsReply)
ROWS = (
    _stats("GET", "/v2/models/stats", summary="Counters of all models"),
    _stats("GET", f"{MODEL}/stats", summary="Counters of a model"),
    _stats("GET", f"{VERSION}/stats", summary="Counters of one version of a model"),
)
