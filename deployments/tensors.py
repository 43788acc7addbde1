"""The check of a request's named tensors against what a model takes.

Called by the pool for every request, whatever door it came through, and by the V2 codec as early as the signature is
known. The messages keep Triton's wording, which V2 clients match on.
"""

from collections.abc import Iterable

import numpy as np

from deployments.errors import InvalidInput
from deployments.types import DATATYPES, NUMPY_DTYPES, Array, Datatype, Signature, Tensors, TensorSpec


def check_inputs(inputs: Tensors, signature: Signature, model: str = "") -> None:
    """Check names, datatypes, shapes and BYTES elements of `inputs`; a signature without inputs allows any names.

    Raises:
        InvalidInput: `field` is the tensor at fault, or `inputs` where one is missing.
    """
    if signature.inputs:
        _check_names(inputs, signature, model)
    elif not inputs:
        raise InvalidInput("inputs: give at least one tensor", field="inputs")
    specs = {spec.name: spec for spec in signature.inputs}
    for name, array in inputs.items():
        datatype = _check_datatype(name, array)
        if name in specs:
            _check_against(specs[name], array, datatype, model)
        if array.shape[:1] == (0,):  # a size of 0 further back is the model's own affair
            raise InvalidInput(f"input {name!r} is empty: its shape is {_shape(array.shape)}", field=name)


def _check_names(inputs: Tensors, signature: Signature, model: str) -> None:
    if len(inputs) == len(signature.inputs) and all(
        spec.name in inputs and not spec.instead_of for spec in signature.inputs
    ):
        return
    known = [spec.name for spec in signature.inputs]
    replaced = {spec.instead_of: spec.name for spec in signature.inputs if spec.instead_of and spec.name in inputs}
    both = [name for name in replaced if name in inputs]
    if both:
        raise InvalidInput(
            f"{replaced[both[0]]!r} stands in place of {both[0]!r}{_for(model)}; give one of them", field=both[0]
        )
    needed = [spec.name for spec in signature.inputs if not spec.optional and spec.name not in replaced]
    missing = [name for name in needed if name not in inputs]
    if missing:
        raise InvalidInput(
            f"expected {len(needed)} inputs but got {len(inputs)} inputs{_for(model)}. Got input(s) {_names(inputs)}, "
            f"but missing required input(s) {_names(missing)}. Please provide all required input(s).",
            field="inputs",
        )
    for name in inputs:
        if name not in known:
            raise InvalidInput(
                f"unexpected inference input {name!r}{_for(model)}; it takes {_names(known)}", field=name
            )


def _check_datatype(name: str, array: Array) -> Datatype:
    datatype = DATATYPES.get(array.dtype)
    if datatype is None:
        takes = ", ".join(str(dtype) for dtype in NUMPY_DTYPES.values())
        raise InvalidInput(f"input {name!r} has numpy dtype {array.dtype}; use one of {takes}", field=name)
    if datatype is Datatype.BYTES and not set(map(type, array.flat)) <= {bytes}:
        odd = next(type(element).__name__ for element in array.flat if type(element) is not bytes)
        raise InvalidInput(f"input {name!r} is BYTES: every element must be bytes, got {odd}", field=name)
    return datatype


def _check_against(spec: TensorSpec, array: Array, datatype: Datatype, model: str) -> None:
    if datatype is not spec.datatype:
        whose = f"model {model!r}" if model else "the model"
        raise InvalidInput(
            f"inference input {spec.name!r} data-type is '{datatype}', but {whose} expects '{spec.datatype}'",
            field=spec.name,
        )
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise InvalidInput(
            f"unexpected shape for input {spec.name!r}{_for(model)}. "
            f"Expected {_shape(spec.shape)}, got {_shape(array.shape)}",
            field=spec.name,
        )


def check_output_names(names: tuple[str, ...], signature: Signature, model: str = "") -> None:
    """Check that a model gives the outputs a request names; a signature without outputs allows any.

    Raises:
        InvalidInput: `field` is `outputs`.
    """
    known = [spec.name for spec in signature.outputs]
    for name in names:
        if known and name not in known:
            raise InvalidInput(
                f"unexpected inference output {name!r}{_for(model)}; it gives {_names(known)}", field="outputs"
            )


def datatype_of(array: Array) -> Datatype:
    """Return the V2 datatype of an array a model gave."""
    return DATATYPES[np.dtype(array.dtype)]


def _for(model: str) -> str:
    return f" for model {model!r}" if model else ""


def _names(names: Iterable[str]) -> str:
    return "[" + ",".join(repr(name) for name in names) + "]"


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
