"""Transformers folders on disk to modules on a device: formats allowed, dtype, missing weights. Called by engines.

Nothing here reaches the network or runs code that came with a model.
"""

import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from deployments.engines.base import unavailable
from deployments.engines.parking import Parking
from deployments.engines.skeletons import kind_of, known
from deployments.spec import ModelSpec

# NOTE: transformers replaces functions of its own and of torch while it builds a model, and puts back what it found.
# Two threads in there at once put back each other's replacements, and no later load of the process ties weights: every
# `from_pretrained` or `from_config` of a model holds this. All else of a load (files, tokenizers, trials) overlaps.
BUILDING = threading.Lock()
OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """Return the dtype of the weights; `auto` is float32 on CPU and half precision on a GPU."""
    if name != "auto":
        dtype = getattr(torch, name)
        assert isinstance(dtype, torch.dtype)  # noqa: S101 - narrows for mypy; the spec allows three names
        return dtype
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_model(auto_class: Any, path: Path, spec: ModelSpec, device: str, may_lack: str | None = None) -> Any:
    """Load a transformers folder for inference, as one of transformers' `AutoModel...` classes.

    The files must hold all weights but those whose names contain `may_lack`.

    Raises:
        ModelUnavailable: no safetensors, or the files lack weights that this task needs.
    """
    _check_files(path, spec)
    transformers_logging.disable_progress_bar()
    # The default attention is SDPA where the architecture has it; asking for it by name fails where it does not.
    with BUILDING:
        model, info = auto_class.from_pretrained(
            path,
            dtype=resolve_dtype(spec.dtype, device),
            use_safetensors=None if "pickle" in spec.allow else True,
            output_loading_info=True,
            **OFFLINE,
        )
    missing = sorted(key for key in info["missing_keys"] if may_lack is None or may_lack not in key)
    if missing:
        # Transformers would fill these with random numbers and answer nonsense.
        names = ", ".join(missing[:5])
        raise unavailable(spec, f"the files hold no trained {names}; the model was not made for {spec.task.value}")
    model.config.use_cache = False
    return model.eval().to(device)


def load_shared(
    auto_class: Any, path: Path, spec: ModelSpec, device: str, may_lack: str | None = None
) -> tuple[Any, Parking]:
    """Load as `load_model` does, a further model of a kind from what is known of it; also return where its weights go.

    Raises:
        ModelUnavailable: as `load_model`.
    """
    _check_files(path, spec)
    kind = kind_of(path, auto_class, resolve_dtype(spec.dtype, device), may_lack)
    if (skeleton := known(kind)) is None:
        model = load_model(auto_class, path, spec, device, may_lack)
    else:
        model = skeleton.fill(path).to(device)
    return model, Parking(model, path, device, kind, skeleton)


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters and buffers; shared ones count once."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def free_device(device: str) -> None:
    """Hand memory of dropped tensors back to the GPU."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _check_files(path: Path, spec: ModelSpec) -> None:
    if not (path / "config.json").is_file():
        raise unavailable(spec, f"{path} holds no config.json; the source must be a transformers model folder")
    if "pickle" in spec.allow or any(path.glob("*.safetensors")):
        return
    found = ", ".join(sorted(p.name for p in path.glob("*.bin"))) or "no weights at all"
    raise unavailable(
        spec,
        f"no *.safetensors in {path} ({found}); convert the weights to safetensors, "
        "or trust the files and write `allow: [pickle]` in the model's entry",
    )
