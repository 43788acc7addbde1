"""The native task API: `POST /v1/predict`, one request and answer shape for every task.

Called through the rows in `ENDPOINTS`. `outputs` has one entry an item, also where `inputs` was a single string, so
that a client reads both alike; ranking and models without a task's outputs differ (see `tasks`). Times are ms.
"""

from functools import partial
from typing import Annotated, Any

from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema

from deployments.errors import ServeError
from deployments.tensors import check_inputs
from deployments.types import InferRequest, InferResult, Task, Timings
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.native_inputs import read_inputs
from serve_app.protocols.tasks import render_outputs
from serve_app.protocols.types import Action, Dialect, Endpoint, Models, RawRequest, Render, Reply
from serve_app.protocols.v2_schema import Version

_INPUTS: Any = {
    "title": "Inputs",
    "description": "a string, a list of strings, or an object by input name; images are base64",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {}},
        {"type": "object", "additionalProperties": True},
    ],
}
_OUTPUTS: Any = {
    "title": "Outputs",
    "description": "one entry an item, in the shape of the model's task; by output name for tensor and custom models",
    "anyOf": [{"type": "array", "items": {}}, {"type": "object", "additionalProperties": True}],
}


class PredictRequest(Wire):
    """A request to any model, by task."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "minilm", "inputs": ["The cat sits outside", "A man plays guitar"]}]}
    )

    model: str = Field(min_length=1, description="a model's name, or name:version")
    version: Version | None = None
    inputs: Annotated[Any, WithJsonSchema(_INPUTS)]
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="options of the task")
    timeout_s: float | None = Field(default=None, gt=0, description="time the answer may take; default: the model's")


class PredictUsage(Wire):
    """What the request cost."""

    n_items: int
    n_tokens: int


class PredictTimings(Wire):
    """Milliseconds spent in each phase."""

    load_ms: float
    prepare_ms: float
    queue_ms: float
    run_ms: float
    finish_ms: float


class PredictResponse(Wire):
    """The answer; which model and version gave it, and what it cost."""

    model: str
    version: str
    outputs: Annotated[Any, WithJsonSchema(_OUTPUTS)]
    usage: PredictUsage
    timings: PredictTimings


class NativeErrorBody(Wire):
    """What went wrong; `details.field` names the field at fault."""

    code: str
    message: str
    details: dict[str, JsonValue]
    request_id: str


class NativeError(Wire):
    """An error of the native API."""

    error: NativeErrorBody


def parse_predict(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /v1/predict`."""
    body = parse_body(raw.body, PredictRequest)
    status = models.resolve(body.model, body.version)
    params = dict(body.parameters)
    inputs = read_inputs(body.inputs, params, status)
    check_inputs(inputs, status.signature, status.name)
    request = InferRequest(body.model, inputs, body.version, params, None, body.timeout_s, raw.request_id)
    return request, partial(_render, status.task)


def envelope(error: ServeError, request_id: str) -> bytes:
    """Render an error."""
    body = {"code": error.code, "message": error.message, "details": error.details, "request_id": request_id}
    return dump({"error": body})


NATIVE = Dialect("Native", envelope, NativeError)
ROWS = (
    Endpoint(
        "POST",
        "/v1/predict",
        Action.INFER,
        "Run any model by its task",
        NATIVE,
        parse=parse_predict,
        request=PredictRequest,
        response=PredictResponse,
    ),
)


def _render(task: Task, result: InferResult) -> Reply:
    body = {
        "model": result.model,
        "version": result.version,
        "outputs": render_outputs(task, result.outputs),
        "usage": {"n_items": result.usage.n_items, "n_tokens": result.usage.n_tokens},
        "timings": _milliseconds(result.timings),
    }
    return Reply(dump(body))


def _milliseconds(timings: Timings) -> dict[str, float]:
    seconds = {
        "load_ms": timings.load_s,
        "prepare_ms": timings.prepare_s,
        "queue_ms": timings.queue_s,
        "run_ms": timings.run_s,
        "finish_ms": timings.finish_s,
    }
    return {name: round(value * 1e3, 3) for name, value in seconds.items()}
