"""Layers of BERT's kind over one packed sequence, in a dozen calls each where transformers' own way takes sixty.

What a lone text costs is to a third what Python does between the products. `PackedModel` puts `FlatLayer.run` in place
of the `forward` of every layer that is built as BERT's are (RoBERTa's, XLM-R's, ELECTRA's), and tries whether that
answers the same, so that what looks alike and is not keeps its own. The modules stay where they are.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm
from transformers.activations import GELUActivation

from deployments.engines import packed_attention, products
from deployments.engines.laid_out import LaidOutLinear
from deployments.engines.packed_attention import Segment

_PARTS = {"attention", "intermediate", "output"}
_PROJECTIONS = ("query", "key", "value")
_DENSE = {"dense", "LayerNorm", "dropout"}


class FlatLayer:
    """One layer: attention within each text, then two dense products, each with what came in added and normalised."""

    def __init__(self, layer: Any) -> None:
        attention = layer.attention.self
        self._layer = layer
        # The modules by name, as they are at each call: `laid_out` replaces some.
        self._projections, self._mix = attention._modules, layer.attention.output._modules
        self._rise, self._fall = layer.intermediate._modules, layer.output._modules
        self._activation = layer.intermediate.intermediate_act_fn
        self._is_gelu = type(self._activation) is GELUActivation and self._activation.act is gelu
        self._heads = (-1, 3, attention.num_attention_heads, attention.attention_head_size)
        self._scale = attention.scaling

    @property
    def projections(self) -> list[nn.Linear]:
        """The products that take the same input, and may be one."""
        return [self._projections[name] for name in _PROJECTIONS]

    def install(self) -> None:
        """Have the layer run this way."""
        self._layer.forward = self.run

    def undo(self) -> None:
        """Have the layer run its own way."""
        del self._layer.forward

    def run(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *unused: None,
        segments: Sequence[Segment],
        **_: Any,
    ) -> torch.Tensor:
        """Return what the layer would: (1, tokens, hidden)."""
        if attention_mask is not None:
            raise ValueError("a packed sequence needs no mask")
        x = hidden[0]
        attended = packed_attention.within(segments, self._project(x), self._scale).flatten(1).to(x.dtype)
        x = _normal(_rows(self._mix["dense"], attended) + x, self._mix["LayerNorm"])
        x = _normal(_rows(self._fall["dense"], self._risen(x)) + x, self._fall["LayerNorm"])
        return x.unsqueeze(0)

    def _project(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        query = self._projections["query"]
        if type(query) is LaidOutLinear:
            return query.rows(x).view(self._heads).unbind(1)
        shape = (-1, *self._heads[2:])
        return [_rows(one, x).view(shape) for one in self.projections]

    def _risen(self, x: torch.Tensor) -> torch.Tensor:
        dense = self._rise["dense"]
        # In half precision the product would be rounded after the activation only: better, but not the same.
        if self._is_gelu and type(dense) is LaidOutLinear and x.dtype is torch.float32:
            return dense.rows(x, "gelu")
        risen: torch.Tensor = self._activation(_rows(dense, x))
        return risen


def flat_layers(layers: nn.Module) -> Iterator[FlatLayer]:
    """Yield a flat way for every layer within `layers` that is built as BERT's."""
    for child in layers.children():
        for layer in child if isinstance(child, nn.ModuleList) else ():
            if _is_berts(layer):
                yield FlatLayer(layer)


def _is_berts(layer: Any) -> bool:
    if set(layer._modules) != _PARTS or set(layer.attention._modules) != {"self", "output"}:
        return False
    attention = layer.attention.self
    return (
        set(attention._modules) == {*_PROJECTIONS, "dropout"}
        and not attention.is_causal
        and set(layer.attention.output._modules) == set(layer.output._modules) == _DENSE
        and set(layer.intermediate._modules) == {"dense", "intermediate_act_fn"}
        and all(type(one) is nn.Linear and one.bias is not None for one in map(attention.get_submodule, _PROJECTIONS))
    )


def _rows(dense: Any, x: torch.Tensor) -> torch.Tensor:
    return dense.rows(x) if type(dense) is LaidOutLinear else products.rows(dense, x)


def _normal(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
