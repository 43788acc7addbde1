"""LoRA adapters: small matrices beside the linear layers of a base model that stays as it is.

An adapter is a model entry of its own (`base:`), read from a PEFT folder by `LoraAdapter`; `Adapters` belongs to a base
model and adds to each row of a running batch what the row's adapter says, one product an adapter and layer.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from deployments.engines import expected_signature
from deployments.engines.base import unavailable
from deployments.engines.loading import free_device, resolve_dtype
from deployments.errors import ModelUnavailable
from deployments.spec import ModelSpec

_WEIGHTS, _CONFIG, _PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
# Kinds of adapters whose weights mean something else; their fields in the PEFT config, and what a plain one has there.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (None, False),
}


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one linear layer: x @ down.T @ up.T, the scale already in `up`."""

    down: torch.Tensor  # (rank, in)
    up: torch.Tensor  # (out, rank)


class LoraAdapter:
    """One adapter in memory. It is loaded, sized and evicted as any engine is; its base model does the work."""

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        self.signature = expected_signature(spec)
        self.labels: tuple[str, ...] = ()
        self._spec = spec
        self._device = device
        self.layers = _read(path, spec, device)

    def size_bytes(self) -> int:
        """Bytes of all matrices."""
        tensors = (tensor for layer in self.layers.values() for tensor in (layer.down, layer.up))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def warm_up(self) -> None:
        """Do nothing: the base model is warm."""

    def close(self) -> None:
        """Let go of the matrices."""
        self.layers = {}
        free_device(self._device)


class Adapters:
    """What the adapters of a running batch add to their base model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._hooked: set[str] = set()
        self._fitting: dict[int, LoraAdapter] = {}
        self._active: list[tuple[torch.Tensor, LoraAdapter]] = []

    def check(self, adapter: LoraAdapter) -> None:
        """Check that an adapter was made for this model, before it joins a batch with others.

        Raises:
            ModelUnavailable: a layer is not there, or of another size.
        """
        if self._fitting.get(id(adapter)) is adapter:
            return
        modules = dict(self._model.named_modules())
        for name, layer in adapter.layers.items():
            module = modules.get(name)
            if not isinstance(module, nn.Linear):
                raise _misfit(f"it has no linear layer {name}")
            if (module.in_features, module.out_features) != (layer.down.shape[1], layer.up.shape[0]):
                raise _misfit(f"its layer {name} is of another size")
        for name in adapter.layers.keys() - self._hooked:
            modules[name].register_forward_hook(partial(self._add, name))
            self._hooked.add(name)
        if len(self._fitting) > 1024:
            self._fitting.clear()
        self._fitting[id(adapter)] = adapter

    @contextmanager
    def applied(self, rows: Sequence[LoraAdapter | None]) -> Iterator[None]:
        """Let each row of the next call have its adapter; rows of one adapter are computed together."""
        places: dict[int, list[int]] = {}
        for place, adapter in enumerate(rows):
            if adapter is not None:
                places.setdefault(id(adapter), []).append(place)
        self._active = [
            (torch.tensor(found, device=self._model.device), adapter)
            for found in places.values()
            if (adapter := rows[found[0]]) is not None
        ]
        try:
            yield
        finally:
            self._active = []

    def _add(self, name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for places, adapter in self._active:
            if (layer := adapter.layers.get(name)) is not None:
                given = inputs[0][places].to(layer.down.dtype)
                output[places] += (given @ layer.down.T @ layer.up.T).to(output.dtype)


def _read(path: Path, spec: ModelSpec, device: str) -> dict[str, LowRank]:
    """Read a PEFT folder. Raises ModelUnavailable."""
    if not (path / _WEIGHTS).is_file() or not (path / _CONFIG).is_file():
        raise unavailable(spec, f"{path} must hold {_CONFIG} and {_WEIGHTS}, as PEFT saves them")
    config = json.loads((path / _CONFIG).read_text())
    if config.get("peft_type") != "LORA":
        raise unavailable(spec, f"{_CONFIG}: peft_type {config.get('peft_type')!r} is not served; LORA is")
    for field, plain in _PLAIN.items():
        if config.get(field) not in plain:
            raise unavailable(spec, f"{_CONFIG}: {field} {config[field]!r} is not served")
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    weights, dtype = load_file(path / _WEIGHTS), resolve_dtype(spec.dtype, device)
    layers: dict[str, LowRank] = {}
    for key, down in weights.items():
        name, found, _ = key.removeprefix(_PREFIX).partition(".lora_A.")
        if found:
            up = weights[key.replace(".lora_A.", ".lora_B.")]
            layers[name] = LowRank(down.to(device, dtype), (up * scale).to(device, dtype))
    if 2 * len(layers) != len(weights):
        odd = next((key for key in weights if ".lora_A." not in key and ".lora_B." not in key), "nothing")
        raise unavailable(spec, f"{_WEIGHTS} holds {odd}, which is no LoRA matrix of a linear layer")
    return layers


def _misfit(reason: str) -> ModelUnavailable:
    reason = f"the adapter does not fit its base model: {reason}"
    return ModelUnavailable(reason, reason=reason)
