"""KServe's V1 protocol: `POST /v1/models/{model}:predict`, rows as `instances` or columns as `inputs`.

Called through the rows in `ENDPOINTS`; the model list and status it shares with OpenAI's are in `openai`. One instance
is a value of the model's first input, or an object by input name; its prediction is what the model gives for it, an
object by output name where there are several. With `inputs` the predictions have the shape of the model's task.
"""

from functools import partial
from typing import Annotated, Any

from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema, model_validator

from deployments.errors import InvalidInput, NotServed
from deployments.tensors import check_inputs
from deployments.types import InferRequest, InferResult, ModelStatus
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.native_inputs import read_inputs
from serve_app.protocols.tasks import render_outputs
from serve_app.protocols.types import Action, Dialect, Endpoint, Models, RawRequest, Render, Reply
from serve_app.protocols.v2_errors import envelope
from serve_app.protocols.v2_schema import V2Error

_ALIVE = dump({"status": "alive"})
_ROWS: Any = {"type": ["array", "null"], "items": {}, "minItems": 1}
_COLUMNS: Any = {"anyOf": [{"type": "string"}, {"type": "array", "items": {}}, {"type": "object"}, {"type": "null"}]}
_PREDICTIONS: Any = {"anyOf": [{"type": "array", "items": {}}, {"type": "object"}]}


class V1Alive(Wire):
    """The server lives."""

    status: str


class V1Request(Wire):
    """Rows or columns."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"instances": ["The cat sits outside"]}]})

    instances: Annotated[list[JsonValue] | None, WithJsonSchema(_ROWS)] = None
    inputs: Annotated[JsonValue, WithJsonSchema(_COLUMNS)] = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="options of the model's task")
    signature_name: str | None = Field(default=None, description="accepted for TensorFlow's clients, changes nothing")

    @model_validator(mode="after")
    def _one(self) -> "V1Request":
        if (self.instances is None) == (self.inputs is None):
            raise ValueError("give 'instances' (a list of rows) or 'inputs' (columns), one of them")
        return self


class V1Response(Wire):
    """One prediction an instance."""

    predictions: Annotated[Any, WithJsonSchema(_PREDICTIONS)]


def alive(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /`."""
    return Reply(_ALIVE)


def parse_predict(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /v1/models/{model}:predict`."""
    body = parse_body(raw.body, V1Request)
    name = raw.path["model"]
    status = models.resolve(name)
    params = dict(body.parameters)
    columns = body.inputs if body.instances is None else _columns(body.instances)
    inputs = read_inputs(columns, params, status)
    check_inputs(inputs, status.signature, status.name)
    request = InferRequest(name, inputs, params=params, request_id=raw.request_id)
    n_rows = None if body.instances is None else len(body.instances)
    return request, partial(_render, status, n_rows)


def explain(raw: RawRequest, models: Models) -> Reply:
    """Refuse `POST /v1/models/{model}:explain`."""
    models.resolve(raw.path["model"])
    raise NotServed("explanations are not served; use :predict")


V1 = Dialect("KServe V1", envelope, V2Error)
ROWS = (
    Endpoint("GET", "/", Action.OPEN, "Is the server alive", V1, answer=alive, response=V1Alive),
    Endpoint(
        "POST",
        "/v1/models/{model}:predict",
        Action.INFER,
        "Run a model on instances",
        V1,
        parse=parse_predict,
        request=V1Request,
        response=V1Response,
    ),
    Endpoint(
        "POST",
        "/v1/models/{model}:explain",
        Action.READ,
        "Refused: explanations are not served",
        V1,
        answer=explain,
        is_served=False,
    ),
)


def _columns(instances: list[JsonValue]) -> JsonValue:
    if not instances:
        raise InvalidInput("instances: must not be empty", field="instances")
    if not any(isinstance(instance, dict) for instance in instances):
        return instances
    columns: dict[str, JsonValue] = {}
    names = instances[0].keys() if isinstance(instances[0], dict) else ()
    for index, instance in enumerate(instances):
        if not isinstance(instance, dict) or instance.keys() != names:
            raise InvalidInput(
                f"instances[{index}]: must be an object with the same names as the first one",
                field=f"instances[{index}]",
            )
    for name in names:
        columns[name] = [instance[name] for instance in instances if isinstance(instance, dict)]
    return columns


def _render(status: ModelStatus, n_rows: int | None, result: InferResult) -> Reply:
    predictions = render_outputs(status.task, result.outputs)
    if n_rows is not None and isinstance(predictions, dict):
        predictions = _rows(predictions, n_rows, result.model)
    return Reply(dump({"predictions": predictions}))


def _rows(columns: dict[str, Any], n_rows: int, model: str) -> list[Any]:
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != n_rows:
            raise InvalidInput(
                f"model {model!r} gives no row of output {name!r} for each instance; send columns as 'inputs'",
                field="instances",
            )
    if len(columns) == 1:
        return list(next(iter(columns.values())))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
