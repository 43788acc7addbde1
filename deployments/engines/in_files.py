"""Where in a folder's safetensors files each weight of a module is, bit for bit. For `parking` and `skeletons`."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LEGACY = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))  # of old BERT files


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of one file of any folder of the kind."""

    file: str
    key: str
    is_converted: bool  # the module has it in another dtype


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads in a folder, none where there are none."""
    if (folder / _ONE).is_file():
        return [folder / _ONE]
    try:
        index = json.loads((folder / _INDEX).read_text())
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def find(tensors: Mapping[str, torch.Tensor], module: nn.Module, folder: Path) -> dict[str, Place]:
    """Return the places of those of a module's tensors that are a tensor of the files, if need be converted."""
    return dict(_find(dict(tensors), getattr(module, "base_model_prefix", ""), folder))


def read(places: Mapping[str, Place], folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors by name, mapped from the files: read when they are used."""
    by_file: dict[str, list[tuple[str, str]]] = {}
    for name, place in places.items():
        by_file.setdefault(place.file, []).append((name, place.key))
    for file, wanted in by_file.items():
        with safe_open(folder / file, framework="pt") as opened:
            for name, key in wanted:
                yield name, opened.get_tensor(key)


def _find(left: dict[str, torch.Tensor], prefix: str, folder: Path) -> Iterator[tuple[str, Place]]:
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            for name, tensor in list(left.items()):
                for key in _names_in_files(name, prefix):
                    if key in keys and _is_same(in_file := file.get_tensor(key), tensor):
                        del left[name]
                        yield name, Place(path.name, key, is_converted=in_file.dtype != tensor.dtype)
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
    if in_file.shape != tensor.shape:
        return False
    with suppress(RuntimeError):
        return torch.equal(in_file.to(tensor.dtype), tensor.to("cpu"))
    return False
