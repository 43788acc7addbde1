"""Products with weights that lie as torch has them: by oneDNN where that is faster than what torch takes by itself.

In float32 torch takes MKL, which leaves half of an AMD CPU's vectors idle. Both read the same weights, so that the
processes of a node go on sharing them; `laid_out` is faster still, for weights of one's own. Used by `flat_layers`,
`PackedModel` and, for the product itself, `laid_out`.
"""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

_FEW = 4  # rows below which MKL is the faster everywhere
_WORTH = 1.2  # times as fast
_TRIALS = 7
_STEPS = 5  # binary digits that may differ


def rows(dense: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return the product of (rows, in) with a linear layer."""
    if x.dtype is torch.float32 and x.shape[0] >= _FEW and x.device.type == "cpu" and prefers_onednn():
        return by_onednn(x, dense.weight, dense.bias)
    return linear(x, dense.weight, dense.bias)


def even(n_rows: int) -> int:
    """Return a number of rows, at most a sixteenth larger, of which there are but sixteen to the doubling.

    For each number oneDNN makes code anew: milliseconds, and up to two megabytes a product of code and tables it keeps.
    """
    step = 1 << max(n_rows.bit_length() - _STEPS, 0)
    return -(-n_rows // step) * step


def has_onednn() -> bool:
    """Return whether torch has oneDNN's product: the operator that its own compiler puts into its code."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, then: str = "none") -> torch.Tensor:
    """Return oneDNN's product of (rows, in); `then` is "none" or the "gelu" to apply (its exact form)."""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        x, weight, bias, then, [], "none" if then == "gelu" else ""
    )
    return found


@cache
def prefers_onednn() -> bool:
    """Return whether oneDNN is the faster one here, by a trial of some milliseconds."""
    if not has_onednn():
        return False
    x, weight = torch.ones(128, 384), torch.ones(384, 384)
    return _seconds(partial(by_onednn, x, weight, None)) * _WORTH < _seconds(partial(linear, x, weight))


class QuickLinear:
    """Puts `rows` in place of a linear layer's `forward`, until `undo`."""

    def __init__(self, dense: nn.Linear) -> None:
        self._dense = dense
        dense.forward = self.forward  # type: ignore[method-assign,assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer would."""
        return rows(self._dense, x.flatten(0, -2)).view(*x.shape[:-1], self._dense.out_features)

    def undo(self) -> None:
        """Leave the layer as it was."""
        del self._dense.forward


def quicken(module: nn.Module) -> list[QuickLinear]:
    """Have every float32 linear layer within `module` multiply as is best here."""
    if not prefers_onednn():
        return []
    return [
        QuickLinear(one) for one in module.modules() if type(one) is nn.Linear and one.weight.dtype is torch.float32
    ]


def _seconds(run: Callable[[], Any]) -> float:
    taken = []
    with torch.inference_mode():
        for _ in range(_TRIALS):
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
    return min(taken)
