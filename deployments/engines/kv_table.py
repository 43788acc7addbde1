"""Keys and values of all running sequences: one row each, dense, grown and shrunk by blocks of tokens.

    layer: keys (rows, heads, width, dim), values alike; row r holds lengths[r] tokens, the rest is never attended to

A model gets the table as its `past_key_values`, and for each call the rows and positions that the call computes.
Attention then reads plain slices, no copy: gathering pages, as transformers' continuous batching does, copies the whole
cache every step and lets every query look at every sequence. Called by `text_generation` in the device thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

BLOCK = 64  # tokens a row grows by


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Heads and sizes of one layer's keys and values."""

    heads: int
    key_dim: int
    value_dim: int


def probe(model: Any, device: str) -> tuple[list[LayerShape], torch.dtype] | None:
    """Run one token and return what each layer caches; None where it is not plain keys and values of all tokens."""
    with torch.inference_mode():
        out = model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=True)
    cache = getattr(out, "past_key_values", None)
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    shapes = [
        LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3])
        for layer in cache.layers
        if layer.keys is not None and layer.values is not None
    ]
    return (shapes, cache.layers[0].keys.dtype) if shapes and len(shapes) == len(cache.layers) else None


class KeyValueTable(Cache):
    """The cache of a running batch, at most `max_tokens` = rows × width large."""

    def __init__(self, shapes: Sequence[LayerShape], dtype: torch.dtype, device: str, max_tokens: int) -> None:
        super().__init__(layers=[_Layer(self, index) for index in range(len(shapes))])
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self.max_tokens = max_tokens
        self.n_rows = self.width = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        # What the call under way computes: rows low to high, all places written, and the width attended to.
        self.low = self.high = self.reach = 0
        self.at_row = self.at_position = torch.empty(0, dtype=torch.int64)

    def fits(self, n_rows: int, width: int) -> bool:
        """Return whether that many rows of that many tokens are allowed."""
        return n_rows * blocks(width) * BLOCK <= self.max_tokens

    def reserve(self, n_rows: int, width: int, n_used: int) -> None:
        """Make room for `n_rows` of `width` tokens, keeping the first `n_used` rows as they are.

        Without memory for it, the table is empty when this raises.
        """
        if n_rows <= self.n_rows and width <= self.width:
            return
        # Some room ahead, so that growing costs a copy now and then only; never more than is allowed.
        wide = blocks(width + width // 4) * BLOCK
        wide = wide if n_rows * wide <= self.max_tokens else blocks(width) * BLOCK
        rows = min(1 << (n_rows - 1).bit_length(), max(self.max_tokens // wide, n_rows))
        try:
            self._resize(rows, wide, min(n_used, self.n_rows))
        except Exception:
            self.clear()  # no memory: some layers are of the new size already, and no row is whole any more
            raise

    def _resize(self, rows: int, wide: int, keep: int) -> None:
        common = min(wide, self.width)
        for index, shape in enumerate(self._shapes):
            for tensors, dim in ((self.keys, shape.key_dim), (self.values, shape.value_dim)):
                # Zeros, not whatever was there: a NaN times an attention weight of zero is a NaN.
                new = torch.zeros(rows, shape.heads, wide, dim, dtype=self._dtype, device=self._device)
                if index < len(tensors):
                    new[:keep, :, :common] = tensors[index][:keep, :, :common]
                    tensors[index] = new
                else:
                    tensors.append(new)
        self.n_rows, self.width = rows, wide

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        if source != target:
            for tensor in (*self.keys, *self.values):
                tensor[target] = tensor[source]

    def clear(self) -> None:
        """Let go of all memory."""
        self.keys.clear()
        self.values.clear()
        self.n_rows = self.width = 0

    def aim(self, low: int, positions: torch.Tensor) -> torch.Tensor:
        """Say what the next call computes: rows from `low`, at `positions` (rows, tokens); return its mask."""
        n_rows, n_tokens = positions.shape
        self.low, self.high, self.reach = low, low + n_rows, int(positions.max()) + 1
        self.at_row = (low + torch.arange(n_rows, device=positions.device)).repeat_interleave(n_tokens)
        self.at_position = positions.reshape(-1)
        ahead = torch.arange(self.reach, device=positions.device) > positions[:, None, :, None]
        mask = torch.zeros(ahead.shape, dtype=self._dtype, device=positions.device)
        return mask.masked_fill_(ahead, torch.finfo(self._dtype).min)


class _Layer(CacheLayerMixin):
    """One layer of the table, as models call it."""

    def __init__(self, table: KeyValueTable, index: int) -> None:
        super().__init__()
        self._table = table
        self._index = index
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the table has its tensors."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write what was computed; return all keys and values of the rows aimed at."""
        table = self._table
        keys, values = table.keys[self._index], table.values[self._index]
        keys[table.at_row, :, table.at_position] = key_states.transpose(1, 2).flatten(0, 1)
        values[table.at_row, :, table.at_position] = value_states.transpose(1, 2).flatten(0, 1)
        rows = slice(table.low, table.high)
        return keys[rows, :, : table.reach], values[rows, :, : table.reach]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of what is attended to."""
        return self._table.reach, 0

    def get_seq_length(self) -> int:
        """Return the width attended to; rows differ, so masks and positions are always given."""
        return self._table.reach

    def get_max_length(self) -> int:
        """Return that there is no limit a model should know of."""
        return -1


def blocks(tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-tokens // BLOCK)
