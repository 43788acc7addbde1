"""The `inputs` of the native API to named tensors: strings, lists and objects, read by what the model takes.

Called by `native`. A value that is not an object belongs to the model's first input. One string or number counts as
a list of one. Images are base64 strings. Where a model's signature is not known yet, datatypes follow the JSON:
strings BYTES, booleans BOOL, whole numbers INT64, other numbers FP32.
"""

from itertools import chain
from typing import Any

import orjson
from pydantic import JsonValue

from deployments.errors import InvalidInput
from deployments.types import Array, Datatype, ModelStatus, Task, text_array
from serve_app.protocols.v2_tensors import from_base64, nested_shape, to_array

_LABELS = "candidate_labels"
_MESSAGES = "messages"
_ALIASES = {Task.TEXT_RANKING: {"texts": "text"}}


def read_inputs(inputs: JsonValue, params: dict[str, JsonValue], status: ModelStatus) -> dict[str, Array]:
    """Return the named tensors of a request; names are checked by `check_inputs` afterwards.

    `candidate_labels` is taken out of `params` where the model wants it as an input, as Hugging Face writes it there.

    Raises:
        InvalidInput: `field` is `inputs` or `inputs.<name>`.
    """
    named = _named(inputs, status)
    if _takes(_LABELS, status) and _LABELS in params:
        named.setdefault(_LABELS, _labels(params.pop(_LABELS)))
    if status.task is Task.ZERO_SHOT_CLASSIFICATION and _LABELS not in named:
        raise InvalidInput(f"parameters.{_LABELS}: is required; give a list of strings", field=f"parameters.{_LABELS}")
    return {name: _array(name, value, status, _field(name, inputs)) for name, value in named.items()}


def _named(inputs: JsonValue, status: ModelStatus) -> dict[str, JsonValue]:
    if isinstance(inputs, dict):
        aliases = _ALIASES.get(status.task, {})
        named: dict[str, JsonValue] = {}
        for given, value in inputs.items():
            name = aliases.get(given, given)
            if name in named:
                raise InvalidInput(f"inputs.{given}: is the same input as {name!r}; give one", field=f"inputs.{given}")
            named[name] = value
        return named
    if status.task is Task.TEXT_RANKING:
        raise InvalidInput("inputs: must be an object with 'query' and 'texts'", field="inputs")
    if not status.signature.inputs:
        raise InvalidInput(
            f"inputs: must be an object by input name; model {status.name!r} has not said yet what it takes",
            field="inputs",
        )
    return {status.signature.inputs[0].name: inputs}


def _takes(name: str, status: ModelStatus) -> bool:
    return any(spec.name == name for spec in status.signature.inputs)


def _labels(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return [label.strip() for label in value.split(",") if label.strip()]
    return value


def _field(name: str, inputs: JsonValue) -> str:
    """Return where in the body an input stands: a value that is not an object is the input itself."""
    return f"inputs.{name}" if isinstance(inputs, dict) or name == _LABELS else "inputs"


def _array(name: str, value: JsonValue, status: ModelStatus, field: str) -> Array:
    if name == _MESSAGES and _takes(name, status) and isinstance(value, list):
        return text_array([orjson.dumps(value).decode()])  # one conversation; pools read it as JSON text
    if value is None or isinstance(value, dict):
        raise InvalidInput(f"{field}: must be a string, a number, a boolean or a list of them", field=field)
    data = value if isinstance(value, list) else [value]
    if not data:
        raise InvalidInput(f"{field}: is empty; give at least one element", field=field)
    specs = {spec.name: spec.datatype for spec in status.signature.inputs}
    datatype = specs.get(name) or _guess(data)
    array = to_array(name, datatype, nested_shape(data), data, field)
    is_image = status.task is Task.IMAGE_CLASSIFICATION and datatype is Datatype.BYTES
    return from_base64(name, array, field) if is_image else array


def _guess(data: list[Any]) -> Datatype:
    level = data
    while level and type(level[0]) is list:
        level = list(chain.from_iterable(part for part in level if type(part) is list))
    kinds = set(map(type, level))
    if str in kinds:
        return Datatype.BYTES
    if kinds == {bool}:
        return Datatype.BOOL
    return Datatype.INT64 if kinds == {int} else Datatype.FP32
