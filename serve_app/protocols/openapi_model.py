"""The OpenAPI document of one model, made from its tensors: its V2 paths, what it takes by name, a request that runs.

Called by the row of `__init__`, which knows all rows. A model that has not said its tensors yet gets the general body.
"""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from deployments.chunks import GENERATIVE_TASKS
from deployments.types import Datatype, ModelStatus, Task, TensorSpec
from serve_app.protocols import v2_generate
from serve_app.protocols.openapi import document
from serve_app.protocols.types import JSON, Endpoint
from serve_app.protocols.v2_errors import MODEL, VERSION
from serve_app.protocols.v2_tensors import nested_shape

_MAX_EXAMPLE = 256  # elements; larger tensors get no example
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # a PNG
_VALUES: dict[Datatype, tuple[str, JsonValue]] = {
    Datatype.BYTES: ("string", "a text"),
    Datatype.BOOL: ("boolean", True),
    **dict.fromkeys((Datatype.FP32, Datatype.FP64), ("number", 0.5)),
}
_GENERATE = frozenset(row.path for row in v2_generate.ROWS)
_INTEGER: tuple[str, JsonValue] = ("integer", 1)


def model_document(endpoints: Sequence[Endpoint], status: ModelStatus) -> dict[str, Any]:
    """Return the document of a model version: the rows that are about one model, its name in their paths."""
    rows = [row for row in endpoints if row.path.startswith(f"{MODEL}/") or row.path == MODEL]
    rows = [row for row in rows if not row.path.startswith(VERSION)]
    if status.task not in GENERATIVE_TASKS:
        rows = [row for row in rows if row.path not in _GENERATE]
    whole = document(rows)
    paths = {path.replace("{model}", status.key): methods for path, methods in whole["paths"].items()}
    for methods in paths.values():
        for operation in methods.values():
            operation.pop("parameters", None)
    if status.signature.inputs:
        paths[f"/v2/models/{status.key}/infer"]["post"]["requestBody"]["content"][JSON] = _content(status)
    title = {"title": status.key, "summary": f"{status.task} by {status.name}, version {status.version}"}
    return {**whole, "info": whole["info"] | title, "paths": paths}


def _content(status: ModelStatus) -> dict[str, Any]:
    inputs = status.signature.inputs
    needed = [spec for spec in inputs if not spec.optional] or list(inputs[:1])  # one of them, where all are optional
    names = [spec.name for spec in status.signature.outputs]
    output = {"type": "object", "required": ["name"], "properties": {"name": {"enum": names} if names else {}}}
    schema: dict[str, Any] = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {
                "type": "array",
                "minItems": len(needed),
                "maxItems": len(inputs),
                "items": {"oneOf": [_schema(spec) for spec in inputs]},
            },
            "outputs": {"type": "array", "items": output},
        },
    }
    tensors = [_example(spec, status.task) for spec in needed]
    example = {"example": {"inputs": tensors}} if None not in tensors else {}
    return {"schema": schema, **example}


def _schema(spec: TensorSpec) -> dict[str, Any]:
    kind, _ = _VALUES.get(spec.datatype, _INTEGER)
    sizes = [{"type": "integer", "minimum": 0} if size < 0 else {"const": size} for size in spec.shape]
    rank = len(spec.shape)
    shape: dict[str, Any] = {"type": "array", "prefixItems": sizes, "minItems": rank, "maxItems": rank}
    elements = {"anyOf": [{"type": kind}, {"type": "array"}]}
    data = {} if spec.datatype is Datatype.FP16 else {"data": {"type": "array", "items": elements}}
    return {
        "title": spec.name,
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"const": spec.name},
            "shape": shape,
            "datatype": {"const": spec.datatype},
            "parameters": {"type": "object"},
            **data,
        },
    }


def _example(spec: TensorSpec, task: Task) -> dict[str, Any] | None:
    if spec.example:
        return {
            "name": spec.name,
            "shape": nested_shape(list(spec.example)),
            "datatype": spec.datatype,
            "data": spec.example,
        }
    shape = [1 if size < 0 else size for size in spec.shape]
    n_elements = math.prod(shape)
    if n_elements > _MAX_EXAMPLE or spec.datatype is Datatype.FP16:  # which JSON cannot carry
        return None
    if task is Task.FILL_MASK:  # its mask is known once it is loaded, and then in the tensor's own example
        return None
    is_image = task is Task.IMAGE_CLASSIFICATION and spec.datatype is Datatype.BYTES
    value = _PIXEL if is_image else _VALUES.get(spec.datatype, _INTEGER)[1]
    tensor = {"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": [value] * n_elements}
    return {**tensor, "parameters": {"content_type": "base64"}} if is_image else tensor
