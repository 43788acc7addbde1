"""Attention within each text of a packed sequence. `PackedModel` cuts the sequence; transformers calls `attend`.

The kernel's cost is a few microseconds for each text and head, however short the text, and some more for each call.
So short texts stand several to a block there, each masked from the others; longer ones share a call with their equals;
long ones go by numpy's BLAS where that is the faster one (`blas_attention`).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deployments.engines import blas_attention

NAME = "packed"
_SHORT, _BLOCK = 16, 32  # tokens of a text that shares a block at most, and of a block
_UNKNOWN = ("sliding_window", "softcap", "position_bias", "s_aux")  # kinds of attention that `attend` cannot do


@dataclass(frozen=True, slots=True)
class Blocks:
    """How short texts fill blocks of `_BLOCK` tokens."""

    places: torch.Tensor  # (blocks * _BLOCK): the token to put there, counted within the segment
    kept: torch.Tensor  # (tokens): the place of each token
    mask: torch.Tensor  # (blocks, 1, _BLOCK, _BLOCK): 0 within a text, else -inf


@dataclass(frozen=True, slots=True)
class Segment:
    """Texts side by side that go through attention together: the tokens `start` to `stop`."""

    start: int
    stop: int
    n_rows: int  # texts, or blocks of them
    longest: int
    blocks: Blocks | None = None  # None: texts of equal length


def segments(lengths: Sequence[int], like: torch.Tensor) -> list[Segment]:
    """Cut a packed sequence of texts, shortest first; masks get the device and the dtype of `like`."""
    found: list[Segment] = []
    start = 0
    n_short = bisect_right(lengths, _SHORT)
    if n_short > 1:
        start = sum(lengths[:n_short])
        blocks = _blocks(lengths[:n_short], like)
        found.append(Segment(0, start, len(blocks.mask), _BLOCK, blocks))
        lengths = lengths[n_short:]
    for length, group in groupby(lengths):
        n_texts = len(list(group))
        stop = start + n_texts * length
        found.append(Segment(start, stop, n_texts, length))
        start = stop
    return found


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[Segment],
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each text of a packed sequence: (1, heads, tokens, d) to (1, tokens, heads, d).

    Registered with transformers, which calls it in every attention layer.
    """
    unknown = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if unknown or attention_mask is not None or getattr(module, "is_causal", False):
        raise ValueError(f"this attention cannot be packed {unknown}")
    attended = within(segments, [x[0].transpose(0, 1) for x in (query, key, value)], scaling)
    return attended.to(query.dtype).unsqueeze(0), None


def within(segments: Sequence[Segment], tensors: Sequence[torch.Tensor], scale: float | None) -> torch.Tensor:
    """Attend within each text: query, key and value, each (tokens, heads, d), to the same, in `compute`'s dtype.

    Tokens behind the last text are a filler whose answers nobody reads: it gets its values back.
    """
    tensors = [compute(x) for x in tensors]
    found = [_within(one, [x[one.start : one.stop] for x in tensors], scale) for one in segments]
    n_tokens = segments[-1].stop
    if n_tokens < len(tensors[2]):
        found.append(tensors[2][n_tokens:])
    return torch.cat(found) if len(found) > 1 else found[0]


def compute(x: torch.Tensor) -> torch.Tensor:
    """Return `x` in the dtype attention is computed in: on CPUs the kernel of half precision is the slower one."""
    return x.float() if x.device.type == "cpu" else x


def _within(segment: Segment, tensors: Sequence[torch.Tensor], scale: float | None) -> torch.Tensor:
    """Attend within the texts of one segment: query, key and value, each (tokens, heads, d), to the same."""
    blocks = segment.blocks
    shape = (segment.n_rows, segment.longest, *tensors[0].shape[1:])
    if blocks is None:
        if segment.longest >= blas_attention.LONG and tensors[0].device.type == "cpu" and blas_attention.is_better():
            return blas_attention.one_by_one(tensors, segment.n_rows, scale)
        q, k, v = (x.view(shape).transpose(1, 2) for x in tensors)
        return scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(0, 1)
    q, k, v = (x.index_select(0, blocks.places).view(shape).transpose(1, 2) for x in tensors)
    found = scaled_dot_product_attention(q, k, v, attn_mask=blocks.mask, scale=scale)  # (blocks, heads, _BLOCK, d)
    return found.transpose(1, 2).flatten(0, 1).index_select(0, blocks.kept)


def _blocks(lengths: Sequence[int], like: torch.Tensor) -> Blocks:
    """Fill blocks with texts in their order, as many as fit."""
    places: list[list[int]] = []
    owners: list[list[int]] = []
    token = 0
    for text, length in enumerate(lengths):
        if not places or len(places[-1]) + length > _BLOCK:
            places.append([])
            owners.append([])
        places[-1] += range(token, token + length)
        owners[-1] += [text] * length
        token += length
    free = [_BLOCK - len(row) for row in places]
    owner = torch.tensor([row + [-1] * n for row, n in zip(owners, free, strict=True)])
    # What fills a block up attends to itself: a row of -inf alone would have no answer.
    is_apart = owner[:, None, :, None] != owner[:, None, None, :]
    mask = torch.zeros(is_apart.shape, dtype=like.dtype).masked_fill_(is_apart, float("-inf"))
    return Blocks(
        torch.tensor([place for row, n in zip(places, free, strict=True) for place in row + [0] * n]).to(like.device),
        (owner.flatten() >= 0).nonzero()[:, 0].to(like.device),
        mask.to(like.device),
    )


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
