"""The bodies of the Open Inference Protocol V2, as they are checked and as the OpenAPI document shows them.

Read by `v2` and, through `ENDPOINTS`, by `openapi`.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema

from deployments.types import Datatype
from serve_app.protocols.json_body import Wire


def _known(datatype: str) -> str:
    if datatype not in (*Datatype, "BF16"):
        raise ValueError(f"{datatype!r} is not one of {', '.join((*Datatype, 'BF16'))}")
    return datatype


_SCALARS = {"type": ["string", "number", "boolean"]}
Parameters = Annotated[
    dict[str, JsonValue], WithJsonSchema({"type": "object", "additionalProperties": _SCALARS, "title": "Parameters"})
]
ElementType = Annotated[Datatype, Field(strict=False)]
InputType = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": [*Datatype, "BF16"]})]
Elements = Annotated[Any, WithJsonSchema({"type": "array", "items": {}, "title": "Data"})]
MaybeElements = Annotated[Any, WithJsonSchema({"type": ["array", "null"], "items": {}, "title": "Data"})]
_TEXT: JsonValue = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a cat", "a dog"]}


def _text(value: object) -> object:
    return str(value) if type(value) is int else value


Version = Annotated[str, BeforeValidator(_text)]  # `"version": 2` is as clear as `"version": "2"`


class InputTensor(Wire):
    """One input; `data` is nested as `shape` says, or flat and row-major.

    In place of `data`, the parameter `binary_data_size` says how many of the bytes after the JSON are this tensor's.
    """

    name: str = Field(min_length=1)
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: InputType
    parameters: Parameters | None = None
    data: MaybeElements = None  # checked by hand, to say how else a tensor may not be sent


class RequestedOutput(Wire):
    """One output to send back."""

    name: str = Field(min_length=1)
    parameters: Parameters | None = None


class InferBody(Wire):
    """A V2 inference request; without `outputs`, all of the model's are sent."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": [_TEXT]}]})

    id: str | None = None
    model_name: str | None = Field(default=None, description="KServe's client sends it; the path decides")
    model_version: str | None = Field(default=None, description="as model_name")
    parameters: Parameters | None = None
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[RequestedOutput] | None = None


class PredictBody(InferBody):
    """A V2 inference request that names its model in the body."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "minilm", "inputs": [_TEXT]}]})

    model: str = Field(min_length=1)
    version: Version | None = None


class OutputTensor(Wire):
    """One output, flat and row-major; an element that is not finite is null.

    A binary output has the parameter `binary_data_size` in place of `data`, and its bytes follow the JSON.
    """

    name: str
    datatype: ElementType
    shape: list[int]
    parameters: Parameters | None = None
    data: Elements = Field(default_factory=list)


class InferResponse(Wire):
    """A V2 answer; `id` is the request's."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(Wire):
    """One tensor of a model; -1 is a size that varies."""

    name: str
    datatype: ElementType
    shape: list[int]


class ModelMetadata(Wire):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str]


class ServerMetadata(Wire):
    """Which server this is."""

    name: str
    version: str
    extensions: list[str]


class ModelNames(Wire):
    """Names of all models."""

    models: list[str]


class Health(Wire):
    """Whether the process lives and whether it can answer."""

    live: bool
    ready: bool


class ModelReady(Wire):
    """Whether a model can answer."""

    name: str
    ready: bool


class V2Error(Wire):
    """A V2 error: clients read `error`."""

    error: str
    code: str
    details: dict[str, JsonValue]
    request_id: str
