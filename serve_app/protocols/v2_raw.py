"""Raw-binary requests: a V2 body without JSON, which is the model's one input as bytes, a batch of one.

Called by `v2`. The shape is deduced from the model's signature and the number of bytes.
"""

import math

import numpy as np

from deployments.errors import InvalidInput
from deployments.types import NUMPY_DTYPES, Array, Datatype, ModelStatus, TensorSpec
from serve_app.protocols.v2_binary import from_bytes


def read_raw(body: bytes, status: ModelStatus) -> dict[str, Array]:
    """Return the one input of a model. Raises InvalidInput where it cannot be told which or of what shape."""
    specs = status.signature.inputs
    if len(specs) != 1:
        raise InvalidInput(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(specs)} inputs in "
            f"{status.name!r}",
            field="body",
        )
    (spec,) = specs
    if spec.datatype is not Datatype.BYTES:
        return {spec.name: from_bytes(spec.name, spec.datatype, _deduced(spec, len(body)), memoryview(body), "body")}
    if any(size not in (-1, 1) for size in spec.shape):
        raise InvalidInput(
            f"For BYTE datatype raw input {spec.name!r}, the model must have input shape [1]", field="body"
        )
    array = np.empty(1, dtype=np.object_)
    array[0] = body
    return {spec.name: array.reshape([1] * len(spec.shape))}


def _deduced(spec: TensorSpec, n_bytes: int) -> list[int]:
    shape = list(spec.shape)  # as a batch of one, where the first of several sizes varies
    if len(shape) > 1 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise InvalidInput(
            f"The shape of the raw input {spec.name!r} can not be deduced because there are more than one "
            "variable-sized dimension",
            field="body",
        )
    if -1 in shape:
        known = math.prod(size for size in shape if size != -1) * NUMPY_DTYPES[spec.datatype].itemsize
        shape[shape.index(-1)] = n_bytes // known if known else 0
    return shape
