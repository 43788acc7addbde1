"""Custom engines that Triton's client samples expect: `simple` (sum and difference), its twin on strings, identities.

An engine is any class with the methods below (`deployments/engines/base.py`); an entry names it in `options.factory`.
`serve_config.yaml` beside this file has the entries.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deployments.errors import InvalidInput
from deployments.spec import ModelSpec
from deployments.types import Array, Datatype, InferRequest, Item, Signature, Tensors, TensorSpec


class Rows:
    """Base of engines whose inputs and outputs have a row an item; a subclass says its signature and `compute`."""

    signature: Signature
    labels: tuple[str, ...] = ()

    def prepare(self, request: InferRequest) -> list[Item]:
        """Make an item of each row, the inputs in the signature's order; rows of equal shape may run together."""
        arrays = [request.inputs[spec.name] for spec in self.signature.inputs]
        if len({len(array) for array in arrays}) > 1:
            raise InvalidInput("inputs: all must have as many rows", field="inputs")
        return [Item(row, group=tuple(part.shape for part in row)) for row in zip(*arrays, strict=True)]

    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        """Compute the outputs of a batch of rows; return them row by row."""
        columns = [np.stack(column) for column in zip(*(item.data for item in items), strict=True)]
        return list(zip(*self.compute(*columns), strict=True))

    def finish(self, request: InferRequest, outputs: Sequence[Any]) -> Tensors:
        """Stack the rows of one request again."""
        columns = zip(*outputs, strict=True)
        return {spec.name: np.stack(rows) for spec, rows in zip(self.signature.outputs, columns, strict=True)}

    def compute(self, *columns: Array) -> tuple[Array, ...]:
        """Return the outputs of a batch."""
        raise NotImplementedError

    def size_bytes(self) -> int:
        """Weights: none."""
        return 0

    def warm_up(self) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to let go of."""


def _pairs(datatype: Datatype) -> Signature:
    example = ([str(i) for i in range(16)],) if datatype is Datatype.BYTES else ()  # of an input, for its documentation

    def two(*names: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, datatype, (-1, 16), example=example) for name in names)

    return Signature(two("INPUT0", "INPUT1"), two("OUTPUT0", "OUTPUT1"))


class AddSub(Rows):
    """`simple`, `simple_int8`: INPUT0 + INPUT1 and INPUT0 - INPUT1, whole numbers [n,16]."""

    def __init__(self, path: Path, spec: ModelSpec, device: str, *, datatype: str = "INT32") -> None:
        self.signature = _pairs(Datatype(datatype))

    def compute(self, *columns: Array) -> tuple[Array, ...]:
        """Return sum and difference."""
        first, second = columns
        return first + second, first - second


class StringAddSub(Rows):
    """`simple_string`: the same on numbers written as strings, BYTES [n,16]."""

    signature = _pairs(Datatype.BYTES)

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        """Need no files."""

    def prepare(self, request: InferRequest) -> list[Item]:
        """Check that every string is a number."""
        for spec in self.signature.inputs:
            for index, element in enumerate(request.inputs[spec.name].flat):
                if not element.removeprefix(b"-").isdigit():
                    field = f"{spec.name}[{index}]"
                    raise InvalidInput(f"{field}: is not a whole number", field=field)
        return super().prepare(request)

    def compute(self, *columns: Array) -> tuple[Array, ...]:
        """Return sum and difference as strings."""
        first, second = (np.vectorize(int, otypes=[object])(column) for column in columns)
        write = np.vectorize(lambda number: str(number).encode(), otypes=[object])
        return write(first + second), write(first - second)


class Identity(Rows):
    """Gives INPUT0 back as OUTPUT0: any datatype, any shape of rows."""

    def __init__(self, path: Path, spec: ModelSpec, device: str, *, datatype: str, shape: Sequence[int]) -> None:
        given = TensorSpec("INPUT0", Datatype(datatype), tuple(shape))
        self.signature = Signature((given,), (TensorSpec("OUTPUT0", given.datatype, given.shape),))

    def compute(self, *columns: Array) -> tuple[Array, ...]:
        """Return what came."""
        return columns
