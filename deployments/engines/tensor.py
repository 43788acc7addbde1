"""Numeric tensors in and out: TorchScript and torch.export programs, with the tensors their entry declares.

Batched, each row of a request is an item, and rows of equal shape run together whoever sent them. Otherwise a
request is one item and runs alone, in the shape it came.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deployments.engines import expected_signature
from deployments.engines.base import unavailable
from deployments.engines.loading import free_device
from deployments.engines.options import TensorOptions
from deployments.engines.params import parse_params
from deployments.engines.tensor_program import Program, load_program
from deployments.errors import EngineFailure, InvalidInput
from deployments.spec import ModelSpec, Strict
from deployments.types import NUMPY_DTYPES, Array, InferRequest, Item, Tensors, TensorSpec


class NoParams(Strict):
    """A program takes tensors and nothing else."""


class TensorProgram:
    """One numeric program."""

    quick_bytes = 4096

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        self.signature = expected_signature(spec)
        self.labels: tuple[str, ...] = ()
        self._spec = spec
        self._device = device
        self._options = TensorOptions.model_validate(spec.options)
        n_inputs = len(self._options.inputs)
        self._program: Program | None = load_program(path, spec, device, self._options.method, n_inputs)
        self._size_bytes = self._program.size_bytes

    def prepare(self, request: InferRequest) -> list[Item]:
        """Make an item of each row, or of the whole request where the program is not batched."""
        parse_params(NoParams, request.params)
        arrays = [request.inputs[tensor.name] for tensor in self._options.inputs]
        if not self._options.batched:
            return [_item(arrays)]
        self._check_rows(arrays)
        return [_item(row) for row in zip(*arrays, strict=True)]

    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        """Run rows together, or requests one by one; return the declared outputs of each, in order."""
        if not self._options.batched:
            return [self._call(item.data) for item in items]
        stacked = [np.stack(column) for column in zip(*(item.data for item in items), strict=True)]
        return list(zip(*self._call(stacked), strict=True))

    def finish(self, request: InferRequest, outputs: Sequence[Sequence[Array]]) -> Tensors:
        """Return the declared outputs by name."""
        names = [tensor.name for tensor in self._options.outputs]
        if not self._options.batched:
            return dict(zip(names, outputs[0], strict=True))
        return {name: np.stack(rows) for name, rows in zip(names, zip(*outputs, strict=True), strict=True)}

    def size_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return self._size_bytes

    def warm_up(self) -> None:
        """Run once on zeros, sizes that vary taken as 1, unless the entry says otherwise."""
        if not self._options.warm_up:
            return
        zeros = [
            np.zeros([max(size, 1) for size in tensor.shape], NUMPY_DTYPES[tensor.datatype])
            for tensor in self._options.inputs
        ]
        try:
            self._call(zeros)
        except EngineFailure as exc:
            hint = "if it is right to refuse zeros, write `warm_up: false` under options"
            raise unavailable(self._spec, f"{exc.message} (warm-up on zeros; {hint})") from exc

    def close(self) -> None:
        """Let go of the program."""
        self._program = None
        free_device(self._device)

    def _check_rows(self, arrays: Sequence[Array]) -> None:
        first = self._options.inputs[0].name
        for tensor, array in zip(self._options.inputs, arrays, strict=True):
            if array.shape[0] != arrays[0].shape[0]:
                message = f"input {tensor.name!r} has {array.shape[0]} rows but {first!r} has {arrays[0].shape[0]}"
                raise InvalidInput(message, field=tensor.name)

    def _call(self, arrays: Sequence[Array]) -> list[Array]:
        assert self._program is not None, "the engine is closed"  # noqa: S101 - narrows for mypy
        # torch.tensor copies: a program may write into its arguments, and requests are not ours to change.
        tensors = [torch.tensor(array, device=self._device) for array in arrays]
        try:
            with torch.inference_mode():
                found = self._program(tensors)
        except (RuntimeError, torch.jit.Error, AssertionError) as exc:
            reason = str(exc).strip().rpartition("\n")[2][:300]  # the last line; the rest is a TorchScript stack
            raise EngineFailure(f"the program failed on this input: {reason}", reason=reason) from exc
        return self._checked(found, arrays[0].shape[0] if self._options.batched else None)

    def _checked(self, found: Any, n_rows: int | None) -> list[Array]:
        declared = [tensor.spec() for tensor in self._options.outputs]
        tensors = _flat(found, [spec.name for spec in declared])
        if len(tensors) != len(declared):
            raise _differs(f"{len(tensors)} outputs", f"{len(declared)}")
        for spec, tensor in zip(declared, tensors, strict=True):
            _check_output(spec, tensor, n_rows)
        return [tensor.detach().cpu().numpy() for tensor in tensors]


def _item(arrays: Sequence[Array]) -> Item:
    return Item(tuple(arrays), group=tuple(array.shape for array in arrays))


def _flat(found: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(found, dict):
        return [found[name] for name in names if name in found]
    return list(found) if isinstance(found, tuple | list) else [found]


def _check_output(spec: TensorSpec, tensor: Any, n_rows: int | None) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise _differs(f"output {spec.name!r}: a {type(tensor).__name__}", "a tensor")
    dtype = torch.from_numpy(np.empty(0, NUMPY_DTYPES[spec.datatype])).dtype
    if tensor.dtype != dtype:
        raise _differs(f"output {spec.name!r}: datatype {tensor.dtype}", f"{spec.datatype} ({dtype})")
    want = spec.shape if n_rows is None else (n_rows, *spec.shape[1:])
    shape = tuple(tensor.shape)
    if len(shape) != len(want) or any(w not in (-1, s) for w, s in zip(want, shape, strict=True)):
        raise _differs(f"output {spec.name!r}: shape {list(shape)}", f"{list(want)}")


def _differs(found: str, declared: str) -> EngineFailure:
    reason = f"the program gave {found}, but the model's entry declares {declared}"
    return EngineFailure(reason, reason=reason)
