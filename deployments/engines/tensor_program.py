"""TorchScript and torch.export files as one callable. Used by the tensor engine only.

Both formats are programs: loading one runs what its author wrote, so a model's entry must allow it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export.passes import move_to_device_pass

from deployments.engines.base import unavailable
from deployments.engines.loading import module_bytes
from deployments.spec import ModelSpec

_SCALARS = ("int", "float", "bool")
_SUFFIXES = {".pt2": "torch_export", ".jit": "torchscript", ".ts": "torchscript", ".pt": "torchscript"}


class Program:
    """Calls a loaded program with tensors, or plain numbers where it wants them; counts its bytes."""

    def __init__(self, module: Any, call: Callable[..., Any], kinds: Sequence[str]) -> None:
        self._call = call
        self._kinds = kinds  # the type of each argument; () where all are tensors
        self.size_bytes = module_bytes(module)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Run on tensors in argument order; a tensor of one element becomes a number where one is wanted."""
        if not self._kinds:
            return self._call(*tensors)
        pairs = zip(tensors, self._kinds, strict=True)
        return self._call(*(t.item() if kind in _SCALARS else t for t, kind in pairs))


def load_program(path: Path, spec: ModelSpec, device: str, method: str, n_inputs: int) -> Program:
    """Load the program at `path`, or the only one in that folder.

    Raises:
        ModelUnavailable: not allowed, not found, or it takes another number of arguments.
    """
    file = _find(path, spec)
    kind = _SUFFIXES.get(file.suffix, "torchscript")
    if kind not in spec.allow:
        raise unavailable(
            spec, f"{file.name} is a program; if you trust it, write `allow: [{kind}]` in the model's entry"
        )
    if kind == "torch_export":
        return _load_export(file, device)
    return _load_script(file, spec, device, method, n_inputs)


def _find(path: Path, spec: ModelSpec) -> Path:
    if path.is_file():
        return path
    found = sorted(p for p in path.glob("*") if p.suffix in _SUFFIXES)
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise unavailable(spec, f"{path} must hold one file {' '.join(_SUFFIXES)}; found {names}")
    return found[0]


def _load_script(file: Path, spec: ModelSpec, device: str, method: str, n_inputs: int) -> Program:
    module = torch.jit.load(str(file), map_location=device).eval()  # type: ignore[no-untyped-call]
    call = getattr(module, method, None)
    if call is None:
        raise unavailable(spec, f"{file.name} has no method {method!r}; set options.method")
    arguments = call.schema.arguments[1:]  # the first one is self
    n_needed = sum(1 for argument in arguments if not argument.has_default_value())
    if not n_needed <= n_inputs <= len(arguments):
        takes = ", ".join(argument.name for argument in arguments)
        raise unavailable(spec, f"options.inputs names {n_inputs} tensors, but {method} takes ({takes})")
    return Program(module, call, [str(argument.type) for argument in arguments[:n_inputs]])


def _load_export(file: Path, device: str) -> Program:
    exported = torch.export.load(file)
    if device != "cpu":
        exported = move_to_device_pass(exported, device)
    module = exported.module()
    return Program(module, module, ())
