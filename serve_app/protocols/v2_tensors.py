"""V2 JSON tensors: the `data` array of an input to numpy, a numpy output to its JSON members.

Called by `v2` and `native`; their binary form is in `v2_binary`. Pure. JSON cannot carry NaN or infinities: in an input
they are refused (orjson does not parse them, null is not a number), in an output they are written as null. BYTES
elements are strings; where an output's bytes are not UTF-8 the tensor is base64 and says so in
`parameters.content_type`, which an input may do as well.
"""

import base64
import binascii
import math
from itertools import chain
from typing import Any

import numpy as np

from deployments.errors import InvalidInput
from deployments.tensors import datatype_of
from deployments.types import NUMPY_DTYPES, Array, Datatype

_MAX_RANK = 32
_MAX_ELEMENTS = 2**63 - 1
_KINDS: dict[Datatype, tuple[frozenset[type], str]] = {
    Datatype.BOOL: (frozenset({bool}), "JSON booleans"),
    Datatype.BYTES: (frozenset({str}), "strings"),
    **dict.fromkeys((Datatype.FP16, Datatype.FP32, Datatype.FP64), (frozenset({int, float}), "numbers")),
}
_INTEGERS = (frozenset({int}), "integers")


def to_array(name: str, datatype: Datatype, shape: tuple[int, ...], data: object, field: str = "") -> Array:
    """Return `data`, nested as `shape` says or flat and row-major, as an array of that shape.

    BYTES elements become UTF-8 `bytes` in an object array. `field` is what errors call the data; default: the name.

    Raises:
        InvalidInput: the count or nesting does not match, an element has the wrong type or is out of range.
    """
    field = field or name
    check_shape(name, shape, field)
    if not isinstance(data, list):
        raise InvalidInput(f"input {name!r}: 'data' must be an array", field=field)
    flat = _flatten(name, shape, data, field)
    _check_kinds(name, datatype, flat, field)
    if datatype is Datatype.BYTES:
        array = np.empty(len(flat), dtype=np.object_)
        array[:] = [element.encode() for element in flat]
    else:
        array = _numbers(name, datatype, flat, field)
    return array.reshape(shape)


def check_shape(name: str, shape: tuple[int, ...], field: str) -> None:
    """Check that a shape is one numpy can hold. Raises InvalidInput."""
    if any(size < 0 for size in shape):
        raise InvalidInput(f"input {name!r}: shape {list(shape)} has a negative size", field=field)
    if len(shape) > _MAX_RANK:
        raise InvalidInput(f"input {name!r}: shape has {len(shape)} dimensions, at most {_MAX_RANK}", field=field)
    # A zero hides the other dimensions from the product, but not from numpy, which overflows on them.
    if math.prod(size or 1 for size in shape) > _MAX_ELEMENTS // 8:
        raise InvalidInput(
            f"shape of input {name!r} causes total element count to exceed maximum size of {_MAX_ELEMENTS}", field=field
        )


def nested_shape(data: object) -> tuple[int, ...]:
    """Return the shape of nested lists, read off the first element of each level."""
    shape: list[int] = []
    while isinstance(data, list):
        shape.append(len(data))
        data = data[0] if data else None
    return tuple(shape)


def from_base64(name: str, array: Array, field: str = "") -> Array:
    """Return a BYTES array with each element decoded from base64 (a `data:` URL is taken as well)."""
    decoded = np.empty(array.size, dtype=np.object_)
    for index, element in enumerate(array.flat):
        text = element.partition(b";base64,")[2] if element.startswith(b"data:") else element
        try:
            decoded[index] = base64.b64decode(text, validate=True)
        except binascii.Error:
            raise InvalidInput(f"input {name!r}: element {index} is not base64", field=field or name) from None
    return decoded.reshape(array.shape)


def to_json(array: Array) -> tuple[Datatype, Any, str]:
    """Return an output's datatype, its elements flat and row-major, and its content type ("" or "base64")."""
    datatype = datatype_of(array)
    if datatype is not Datatype.BYTES:
        return datatype, np.ascontiguousarray(array).reshape(-1), ""
    elements = list(array.flat)
    try:
        return datatype, [element.decode() for element in elements], ""
    except UnicodeDecodeError:
        return datatype, [base64.b64encode(element).decode() for element in elements], "base64"


def _flatten(name: str, shape: tuple[int, ...], data: list[Any], field: str) -> list[Any]:
    flat = data
    if list in set(map(type, data)):
        level: list[Any] = [data]
        for size in shape:
            if not all(type(part) is list and len(part) == size for part in level):
                raise _mismatch(name, shape, field, "nested otherwise")
            level = list(chain.from_iterable(level))
        flat = level
    if len(flat) != math.prod(shape) or list in set(map(type, flat)):
        raise _mismatch(name, shape, field, f"{len(flat)} elements")
    return flat


def _mismatch(name: str, shape: tuple[int, ...], field: str, found: str) -> InvalidInput:
    wanted = f"shape {list(shape)} means {math.prod(shape)} elements"
    return InvalidInput(
        f"input {name!r}: Shape does not match true shape of 'data' field: {wanted}, 'data' is {found}", field=field
    )


def _check_kinds(name: str, datatype: Datatype, flat: list[Any], field: str) -> None:
    kinds, words = _KINDS.get(datatype, _INTEGERS)
    if not set(map(type, flat)) <= kinds:
        index = next(i for i, element in enumerate(flat) if type(element) not in kinds)
        raise InvalidInput(
            f"input {name!r}: {datatype} takes {words}; element {index} of 'data' is {_name(flat[index])}", field=field
        )


def _name(element: object) -> str:
    names = {str: "a string", bool: "a boolean", dict: "an object", list: "an array", type(None): "null"}
    return names.get(type(element), f"{element!r}")


def _numbers(name: str, datatype: Datatype, flat: list[Any], field: str) -> Array:
    dtype = NUMPY_DTYPES[datatype]
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=dtype)
    except OverflowError:
        array = None
    if array is None or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise InvalidInput(f"input {name!r}: an element of 'data' is out of range for {datatype}", field=field)
    return array
