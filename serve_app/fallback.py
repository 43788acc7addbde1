"""Who answers when a model cannot: another version, another model, at last a fixed answer.

The outermost layer of `gateway.py`. An answer that did not come from the model asked for says so: header `x-fallback`
and metric `model_endpoint_fallbacks_total`; its body names the model that gave it.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from pydantic import JsonValue

from deployments.errors import EngineFailure, ServeError
from deployments.types import (
    MONOTONIC,
    NUMPY_DTYPES,
    Array,
    Clock,
    InferRequest,
    InferResult,
    ModelStatus,
    TensorSpec,
    Usage,
)
from serve_app.config import EndpointConfig
from serve_app.policies import Answer, Work
from serve_app.protocols.types import Models
from serve_app.traffic_config import Fallback
from serve_app.traffic_metrics import TrafficMetrics

logger = logging.getLogger(__name__)
STATIC = "static"


class FallbackChain:
    """Asks the next one when the one before could not answer."""

    def __init__(self, models: Models, metrics: TrafficMetrics, clock: Clock = MONOTONIC) -> None:
        self._models = models
        self._metrics = metrics
        self._clock = clock

    def configure(self, config: EndpointConfig) -> None:
        """Nothing of its own: the plan brings the chain of each request."""

    async def answer(self, work: Work, compute: Answer) -> InferResult:
        """Return the first answer of the chain.

        Raises:
            ServeError: the error of the model asked for, where nobody could stand in.
        """
        fallback = work.plan.fallback
        if fallback is None:
            return await compute(work)
        try:
            return await compute(self._within(work, fallback))
        except ServeError as exc:
            if not _calls_for_another(exc):
                raise
            return await self._instead(work, fallback, exc, compute)

    async def _instead(self, work: Work, fallback: Fallback, cause: ServeError, compute: Answer) -> InferResult:
        for target in fallback.to:
            if self._clock() >= work.deadline:
                break
            try:
                model = self._models.resolve(target)
                if model.key == work.plan.primary.key:
                    continue
                step = self._within(replace(work, plan=replace(work.plan, primary=model)), fallback)
                result = await compute(step)
            except ServeError as exc:
                logger.info("fallback %s could not answer either: %s", target, exc.message)
            else:
                self._mark(work, model.key, cause)
                return result
        if fallback.answer is None:
            raise cause
        try:
            result = static_result(work.plan.primary, work.request, fallback.answer)
        except (KeyError, ValueError, TypeError, OverflowError):
            logger.exception("the fixed answer for %s does not fit its outputs", work.plan.asked)
            raise cause from None
        self._mark(work, STATIC, cause)
        return result

    def _within(self, work: Work, fallback: Fallback) -> Work:
        if fallback.after_s is None:
            return work
        return replace(work, deadline=min(work.deadline, self._clock() + fallback.after_s))

    def _mark(self, work: Work, by: str, cause: ServeError) -> None:
        work.context.fallback = work.context.headers["x-fallback"] = by
        self._metrics.fallback(work.plan.primary, by, cause.code)


def _calls_for_another(exc: ServeError) -> bool:
    """Return whether another model might do better; what is wrong with the request is wrong for all."""
    return exc.retryable or isinstance(exc, EngineFailure) or exc.status == 500


def static_result(model: ModelStatus, request: InferRequest, answer: Mapping[str, JsonValue]) -> InferResult:
    """Return a fixed answer, one row repeated for every row of the request.

    Raises:
        KeyError: an output that is asked for has no value.
        ValueError, TypeError, OverflowError: a value does not fit the output's datatype, or is no regular array.
    """
    declared = {spec.name: spec for spec in model.signature.outputs}
    n_rows = next((request.inputs[name].shape[0] for name in model.rows if name in request.inputs), None)
    wanted = request.outputs or tuple(answer)
    outputs: dict[str, Array] = {}
    for name in wanted:
        row = _array(answer[name], declared.get(name))
        outputs[name] = row if n_rows is None else np.repeat(row[None], n_rows, axis=0)
    return InferResult(model.name, model.version, outputs, Usage(n_items=request.n_items))


def _array(value: JsonValue, spec: TensorSpec | None) -> Array:
    array = np.array(value)
    if array.dtype.kind == "U":
        text = np.empty(array.shape, dtype=np.object_)
        text[...] = np.vectorize(str.encode, otypes=[np.object_])(array)
        return text
    if array.dtype.hasobject:
        raise TypeError("neither numbers nor strings")
    if spec is not None:
        return array.astype(NUMPY_DTYPES[spec.datatype])
    return array.astype(np.float32) if array.dtype.kind == "f" else array
