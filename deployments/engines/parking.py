"""A module's weights off the device and back: into host RAM from a GPU; on a CPU, back into the files they came from.

On a CPU a parked model holds no weights of its own: those that equal a tensor of its safetensors files are mapped from
there when it comes back, out of the page cache that all processes of the node share. The module itself, its tokenizer
and whatever is not in the files stay in memory, which is what makes coming back fast. Before weights leave for good,
what the next model of the kind needs is learned from them (`skeletons.py`). Used by engines.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from deployments.engines.in_files import Place, find, read
from deployments.engines.skeletons import Kind, Skeleton, learn


class Parking:
    """Where the weights of one module go. `folder` holds its files; `skeleton` is what it was made of, if of any."""

    def __init__(
        self, module: nn.Module, folder: Path, device: str, kind: Kind | None = None, skeleton: Skeleton | None = None
    ) -> None:
        self._module = module
        self._folder = folder
        self._device = device
        self._kind = kind
        self._places = None if skeleton is None else self._own(skeleton.places)  # else found when first parked
        self._held: dict[str, torch.Tensor] = {}
        self._is_away = False

    def learn(self) -> None:
        """Learn the kind of the module, if it is not known yet; the module is as it was built."""
        if not self._is_away:
            learn(self._kind, self._module, self._folder)

    def park(self) -> None:
        """Take the weights off the device."""
        if self._device == "cpu":
            self._to_files()
        else:
            self._held = {name: tensor.data.to("cpu") for name, tensor in self._tensors()}
            self._empty(set(self._held))
        self._is_away = True

    def unpark(self) -> None:
        """Bring the weights back."""
        tensors = dict(self._tensors())
        for name, held in self._held.items():
            tensors[name].data = held.to(self._device)
        self._held = {}
        for name, tensor in read(self._places or {}, self._folder):
            tensors[name].data = tensor
        self._is_away = False

    def drop(self) -> None:
        """Free the weights now, whoever may still hold the module, which is as it was built."""
        self.learn()
        self._held = {}
        self._empty({name for name, _ in self._tensors()})

    def _to_files(self) -> None:
        if self._places is None:
            self._places = self._own(find(dict(self._tensors()), self._module, self._folder))
        self._empty(set(self._places or ()))

    def _own(self, places: Mapping[str, Place]) -> dict[str, Place] | None:
        """Return those places that a parked module is brought back from; None on a GPU, where there are none."""
        if self._device != "cpu":
            return None
        names = {name for name, _ in self._tensors()}
        return {name: place for name, place in places.items() if name in names and not place.is_converted}

    def _empty(self, names: set[str]) -> None:
        for name, tensor in self._tensors():
            if name in names:
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._module.named_parameters()
        if self._device != "cpu":  # on a CPU they are small, and stay
            yield from self._module.named_buffers()
