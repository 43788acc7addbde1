"""A module's weights off the device and back: into host RAM from a GPU; on a CPU, back into the files they came from.

On a CPU a parked model holds no weights of its own: those that equal a tensor of its safetensors files are mapped from
there when it comes back, out of the page cache that all processes of the node share. The module itself, its tokenizer
and whatever is not in the files stay in memory, which is what makes coming back fast. Used by engines.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

_LEGACY = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))  # of old BERT files


@dataclass(frozen=True, slots=True)
class _InFile:
    path: Path
    key: str


class Parking:
    """Where the weights of one module go. `folder` holds its safetensors files; None if it has none."""

    def __init__(self, module: nn.Module, folder: Path | None, device: str) -> None:
        self._module = module
        self._folder = folder
        self._device = device
        self._places: dict[str, _InFile] | None = None  # found when it is parked for the first time
        self._held: dict[str, torch.Tensor] = {}

    def park(self) -> None:
        """Take the weights off the device."""
        if self._device == "cpu":
            self._to_files()
        else:
            self._held = {name: tensor.data.to("cpu") for name, tensor in self._tensors()}
            self._empty(set(self._held))

    def unpark(self) -> None:
        """Bring the weights back."""
        tensors = dict(self._tensors())
        for name, held in self._held.items():
            tensors[name].data = held.to(self._device)
        self._held = {}
        for path, places in self._by_file().items():
            with safe_open(path, framework="pt") as file:
                for name, key in places:
                    tensors[name].data = file.get_tensor(key)  # mapped: read when it is used

    def drop(self) -> None:
        """Free the weights now, whoever may still hold the module."""
        self._held = {}
        self._empty({name for name, _ in self._tensors()})

    def _to_files(self) -> None:
        if self._places is None:
            self._places = dict(self._find())
        self._empty(set(self._places))

    def _empty(self, names: set[str]) -> None:
        for name, tensor in self._tensors():
            if name in names:
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._module.named_parameters()
        if self._device != "cpu":  # on a CPU they are small, and stay
            yield from self._module.named_buffers()

    def _by_file(self) -> dict[Path, list[tuple[str, str]]]:
        found: dict[Path, list[tuple[str, str]]] = {}
        for name, place in (self._places or {}).items():
            found.setdefault(place.path, []).append((name, place.key))
        return found

    def _find(self) -> Iterator[tuple[str, _InFile]]:
        """Yield the parameters that are, bit for bit, a tensor of the files, and which one."""
        left = dict(self._tensors())
        prefix = getattr(self._module, "base_model_prefix", "")
        for path in sorted(self._folder.glob("*.safetensors")) if self._folder else ():
            with safe_open(path, framework="pt") as file:
                keys = set(file.keys())
                for name, tensor in list(left.items()):
                    for key in _names_in_files(name, prefix):
                        if key in keys and _is_same(file.get_tensor(key), tensor):
                            del left[name]
                            yield name, _InFile(path, key)
                            break


def _names_in_files(name: str, prefix: str) -> Iterator[str]:
    names = [name]
    if prefix:
        names += [f"{prefix}.{name}", name.removeprefix(f"{prefix}.")]
    for each in names:
        yield each
        for new, old in _LEGACY:
            if each.endswith(new):
                yield each.removesuffix(new) + old


def _is_same(in_file: torch.Tensor, tensor: torch.Tensor) -> bool:
    if in_file.dtype != tensor.dtype or in_file.shape != tensor.shape:
        return False
    with suppress(RuntimeError):
        return torch.equal(in_file, tensor)
    return False
