"""Attention of long texts, one at a time, by numpy's BLAS: for CPUs where that multiplies faster than torch does.

In float32 torch takes MKL, which leaves half of an AMD CPU's vectors idle; OpenBLAS, in numpy's wheels, does not
unless OPENBLAS_CORETYPE says so. Used by `packed_attention`, which has torch's own kernel for the rest.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

LONG = 48  # tokens from which on it is worth its calls
_SCORES = 2**17  # of the heads that go together: half a megabyte, which stays in a core's cache
_LOG2_E = math.log2(math.e)
_LEAST, _MOST = 2.0**-60, 2.0**100  # of a token's weights together, so that no weight that counts is lost or infinite
_WORTH = 1.3  # times as fast alone: in a batch, between the products, its code and its room are cold
_TRIALS = 20
_TRIAL = (128, 12, 32)  # tokens, heads, d


def is_better() -> bool:
    """Return whether to attend this way here. Several threads share one text's work in torch, and not here."""
    return torch.get_num_threads() == 1 and _won()


def one_by_one(tensors: Sequence[torch.Tensor], n_texts: int, scale: float | None) -> torch.Tensor:
    """Attend within texts of equal length: query, key and value, each (tokens, heads, d) float32, to the same."""
    query, key, value = tensors
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    found = torch.empty(value.shape)
    texts = [x.view(n_texts, -1, *x.shape[1:]) for x in (query * (scale * _LOG2_E), key, value, found)]
    for text in zip(*texts, strict=True):
        if not _attend(*text):
            query, key, value, own = (x.transpose(0, 1) for x in text)
            own.copy_(scaled_dot_product_attention(query, key, value, scale=1 / _LOG2_E))
    return found


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, found: torch.Tensor) -> bool:
    """Attend within one text, each (tokens, heads, d), its scores the exponents of two; return whether that went well.

    Weights are 2**score, without the largest score taken off first: half of a softmax's time. It fails where a score
    is beyond what float32 can raise two to.
    """
    q, k, v, out = (x.transpose(0, 1).numpy() for x in (query, key, value, found))  # (heads, tokens, d)
    n_heads, n_tokens, _ = q.shape
    together = min(max(_SCORES // n_tokens**2, 1), n_heads)
    room = np.empty((together, n_tokens, n_tokens), np.float32)
    totals = torch.empty(n_heads, n_tokens, 1)
    with np.errstate(all="ignore"):  # what is not finite is found in the totals
        for start in range(0, n_heads, together):
            heads = slice(start, start + together)
            scores = room[: n_heads - start]
            np.matmul(q[heads], k[heads].transpose(0, 2, 1), out=scores)
            weights = torch.from_numpy(scores).exp2_()
            torch.sum(weights, -1, keepdim=True, out=totals[heads])
            np.matmul(scores, v[heads], out=out[heads])
    least, most = totals.aminmax()
    found /= totals.transpose(0, 1)
    return bool(least > _LEAST) and bool(most < _MOST)


@cache
def _won() -> bool:
    """Return whether it is the faster one, by a trial of some milliseconds.

    CPU seconds count: a BLAS that makes threads of its own loses.
    """
    tensors = torch.ones(_TRIAL), torch.ones(_TRIAL), torch.ones(_TRIAL)
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in tensors)
    ours = _seconds(partial(one_by_one, tensors, 1, None))
    return ours * _WORTH < _seconds(partial(scaled_dot_product_attention, query, key, value))


def _seconds(run: Callable[[], Any]) -> float:
    taken = []
    with torch.inference_mode():
        for _ in range(_TRIALS):
            started = time.process_time()
            run()
            taken.append(time.process_time() - started)
    return min(taken)
