"""What models of one kind share: the module without its weights, and where in its files each weight is.

Transformers builds the first model of a kind, which takes most of a load and the GIL. What it built is learned from it
later, in nobody's way; further models of the kind are copies of that whose weights are mapped from files of their own.
A kind is everything that decides what transformers builds, but for the weights' values. Used by `loading`, `parking`.
"""

import hashlib
import logging
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn

from deployments.engines.in_files import Place, find, read, weight_files

logger = logging.getLogger(__name__)

_MAX_KINDS = 32
_MAX_BYTES = 2 * 2**30  # of weights: comparing more takes longer than what it saves
_MAX_HEADER = 100 * 2**20  # safetensors' own bound
_ALSO_READ = ("config.json", "adapter_config.json", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A module whose weights are empty, and how they are filled."""

    module: nn.Module
    places: Mapping[str, Place]

    def fill(self, folder: Path) -> Any:
        """Return a module of its own with the weights of this folder; what its files lack, all of a kind share."""
        own = {id(p): nn.Parameter(p.data, requires_grad=False) for p in self.module.parameters()}
        made = deepcopy(self.module, dict(own))
        tensors = made.state_dict(keep_vars=True)
        for name, tensor in read(self.places, folder):
            tensors[name].data = tensor.to(tensors[name].dtype)
        return made


@dataclass(frozen=True, slots=True)
class Kind:
    """What a model is but for its weights' values; weights whose names contain `may_lack` are of no use to anybody."""

    digest: str
    may_lack: str | None = None


_KNOWN: OrderedDict[Kind, Skeleton | None] = OrderedDict()  # None: this kind cannot be learned
_LOCK = threading.Lock()  # of these


def kind_of(folder: Path, auto_class: Any, dtype: torch.dtype, may_lack: str | None) -> Kind | None:
    """Return the kind of what transformers would build; None where it is not built from safetensors alone."""
    files = weight_files(folder)
    if not files or sum(file.stat().st_size for file in files) > _MAX_BYTES:
        return None
    digest = hashlib.sha256(f"{auto_class.__name__} {dtype}".encode())
    for name in _ALSO_READ:
        content = (folder / name).read_bytes() if (folder / name).is_file() else b""
        digest.update(f"\n{name} {len(content)}\n".encode() + content)
    for file in files:
        digest.update(f"\n{file.name}\n".encode() + _header(file))
    return Kind(digest.hexdigest(), may_lack)


def known(kind: Kind | None) -> Skeleton | None:
    """Return what has been learned of a kind."""
    if kind is None:
        return None
    with _LOCK:
        if kind in _KNOWN:
            _KNOWN.move_to_end(kind)
        return _KNOWN.get(kind)


def learn(kind: Kind | None, module: nn.Module, folder: Path) -> None:
    """Learn a kind from a module as transformers built it: nothing hooked in, all its weights there."""
    if kind is None or kind in _KNOWN:
        return
    try:
        skeleton = _skeleton(module, folder, kind.may_lack)
    except Exception:  # whatever a strange module raises when it is copied: transformers goes on building it
        logger.info("models like the one in %s are not built from a copy", folder, exc_info=True)
        skeleton = None
    with _LOCK:
        _KNOWN[kind] = skeleton
        while len(_KNOWN) > _MAX_KINDS:
            _KNOWN.popitem(last=False)


def _skeleton(module: nn.Module, folder: Path, may_lack: str | None) -> Skeleton | None:
    state = module.state_dict(keep_vars=True)
    places = find(state, module, folder)
    in_files = {id(state[name]) for name in places}
    odd = [name for name, tensor in state.items() if id(tensor) not in in_files and not (may_lack and may_lack in name)]
    if odd or _holds_on(module) or any(type(p) is not nn.Parameter for p in module.parameters()):
        return None
    empty = {id(p): _empty(p) for p in module.parameters() if id(p) in in_files}
    return Skeleton(deepcopy(module, dict(empty)).to("cpu"), places)


def _empty(like: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty(0, dtype=like.dtype), requires_grad=False)


def _holds_on(module: nn.Module) -> bool:
    """Return whether a function within the module would go on using the module it was made for, when copied."""
    functions = (f for part in module.modules() for f in vars(part).values() if isinstance(f, FunctionType))
    cells = (cell.cell_contents for f in functions for cell in f.__closure__ or ())
    return any(isinstance(held, nn.Module | torch.Tensor) for held in cells)


def _header(file: Path) -> bytes:
    with file.open("rb") as opened:
        head = opened.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        return head + opened.read(min(size, _MAX_HEADER))
