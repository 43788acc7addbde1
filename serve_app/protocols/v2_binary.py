"""V2 tensors as bytes: little-endian, row-major; each element of BYTES behind its length as a 32-bit number.

Called by `v2` (binary_tensor_data over REST) and `v2_grpc` (`raw_*_contents`). Pure. NaN and infinities pass as they
are. BF16, which numpy does not have, is widened to FP32 without loss; no output is BF16.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np

from deployments.errors import InvalidInput
from deployments.types import NUMPY_DTYPES, Array, Datatype
from serve_app.protocols.v2_tensors import check_shape

BF16 = "BF16"
_LENGTH = struct.Struct("<I")


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: memoryview, field: str = "") -> Array:
    """Return the tensor that `data` holds; BF16 becomes FP32.

    Raises:
        InvalidInput: there are more or fewer bytes than `shape` needs.
    """
    field = field or name
    check_shape(name, tuple(shape), field)
    if datatype == Datatype.BYTES:
        return _split(name, shape, data, field)
    dtype = np.dtype(np.uint16) if datatype == BF16 else NUMPY_DTYPES[Datatype(datatype)]
    n_bytes = math.prod(shape) * dtype.itemsize
    if len(data) != n_bytes:
        raise _size(name, shape, f"{n_bytes} bytes", len(data), field)
    array = np.frombuffer(data, dtype.newbyteorder("<"))
    if datatype == BF16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif datatype == Datatype.BOOL:
        array = array.view(np.uint8) != 0
    return array.reshape(shape)


def to_bytes(array: Array) -> bytes:
    """Return a tensor's bytes."""
    if not array.dtype.hasobject:
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    parts: list[bytes] = []
    for element in array.flat:
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def _split(name: str, shape: Sequence[int], data: memoryview, field: str) -> Array:
    elements: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < _LENGTH.size:
            raise _size(name, shape, "4 bytes of length before each element", end - at, field)
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > end - at:
            raise _size(name, shape, f"{length} bytes of element {len(elements)}", end - at, field)
        elements.append(bytes(data[at : at + length]))
        at += length
    if len(elements) != math.prod(shape):
        raise InvalidInput(
            f"expected {math.prod(shape)} strings for input {name!r} of shape {list(shape)}, got {len(elements)}",
            field=field,
        )
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(shape)


def _size(name: str, shape: Sequence[int], wanted: str, found: int, field: str) -> InvalidInput:
    return InvalidInput(
        f"unexpected size for input {name!r}: shape {list(shape)} needs {wanted}, got {found} bytes", field=field
    )
