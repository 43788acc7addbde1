"""Works, models and a fake pool for the tests of the traffic policies."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from deployments.errors import ServeError
from deployments.types import (
    Array,
    Datatype,
    InferRequest,
    InferResult,
    ModelState,
    ModelStatus,
    Signature,
    Task,
    TensorSpec,
    Timings,
    Usage,
    text_array,
)
from serve_app.context import Context
from serve_app.policies import Work
from serve_app.routing import Plan
from serve_app.traffic_metrics import TrafficMetrics

EMBED = Signature((TensorSpec("text", Datatype.BYTES, (-1,)),), (TensorSpec("embedding", Datatype.FP32, (-1, 3)),))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counts:
    """The traffic metrics, with a way to read them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.metrics = TrafficMetrics(self._registry)

    def __call__(self, name: str, **labels: str) -> float:
        samples = [
            s for metric in self._registry.collect() for s in metric.samples if s.name == f"model_endpoint_{name}"
        ]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())


def model(name: str = "m", version: str = "1", **fields: Any) -> ModelStatus:
    values: dict[str, Any] = {
        "task": Task.FEATURE_EXTRACTION,
        "signature": EMBED,
        "state": ModelState.READY,
        "pinned": True,
        "timeout_s": 30.0,
        "digest": "d1",
        "cache_ttl_s": 60.0,
        "rows": ("text",),
        **fields,
    }
    return ModelStatus(name, version, **values)


def texts(*values: str, **fields: Any) -> InferRequest:
    return InferRequest("m", {"text": text_array(values)}, **fields)


def work(request: InferRequest, status: ModelStatus | None = None, deadline: float = 1030.0, **plan: Any) -> Work:
    return Work(request, Plan(request.model, status or model(), **plan), deadline, Context())


def vector(status: ModelStatus, text: str, **params: Any) -> Array:
    """Return what a fake model says of a text: different for every model, version, configuration and text."""
    seed = hash((status.name, status.version, status.digest, text, tuple(sorted(params.items()))))
    return np.random.default_rng(abs(seed)).random(3, dtype=np.float32)


class Pool:
    """Embeds; keeps what it was asked. `error` is raised instead; `gate` holds answers back until it is set."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.error: ServeError | Callable[[Work], ServeError | None] | None = None
        self.gate: asyncio.Event | None = None
        self.digest: str | None = None

    async def __call__(self, one: Work) -> InferResult:
        values = [element.decode() for element in one.request.inputs["text"]]
        self.asked.append(values)
        if self.gate is not None:
            await self.gate.wait()
        error = self.error(one) if callable(self.error) and not isinstance(self.error, ServeError) else self.error
        if error is not None:
            raise error  # type: ignore[misc]
        status = one.plan.primary
        outputs = {"embedding": np.stack([vector(status, text, **one.request.params) for text in values])}
        return InferResult(
            status.name,
            status.version,
            outputs,
            Usage(len(values), sum(map(len, values))),
            Timings(run_s=0.5),
            status.digest if self.digest is None else self.digest,
            tuple(map(len, values)),
        )


def same(result: InferResult, status: ModelStatus, *values: str, **params: Any) -> bool:
    expected: Mapping[str, Array] = {"embedding": np.stack([vector(status, text, **params) for text in values])}
    return bool(np.array_equal(result.outputs["embedding"], expected["embedding"]))


async def settle() -> None:
    """Let every ready task run."""
    for _ in range(10):
        await asyncio.sleep(0)
