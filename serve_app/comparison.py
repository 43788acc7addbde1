"""How far two models' answers to one request are apart, as one number: 0 is the same. Used by `shadow.py`. Pure."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np

from deployments.types import Array, Task, Tensors

Comparison: TypeAlias = Literal["cosine", "top1", "absolute"]
_MAX_NUMBERS = 2**20  # of an output that are compared: this runs between requests
_BY_TASK: dict[Task, Comparison] = {
    Task.FEATURE_EXTRACTION: "cosine",
    Task.TEXT_CLASSIFICATION: "top1",
    Task.ZERO_SHOT_CLASSIFICATION: "top1",
    Task.IMAGE_CLASSIFICATION: "top1",
    Task.FILL_MASK: "top1",
    Task.TOKEN_CLASSIFICATION: "top1",
}


def difference(task: Task, comparison: Comparison | None, ours: Tensors, theirs: Tensors) -> float:
    """Return the difference of two answers; infinite where they cannot be compared.

    cosine: 1 - the lowest cosine of two rows. top1: the share of rows whose first label (or greatest number) differs.
    absolute: the greatest difference of two numbers; strings that differ count 1.
    """
    compare = _COMPARE[comparison or _BY_TASK.get(task, "absolute")]
    if ours.keys() != theirs.keys() or not ours:
        return math.inf
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            return float(compare(ours, theirs))
    except (ValueError, TypeError):  # shapes that do not fit one another
        return math.inf


def _cosine(ours: Tensors, theirs: Tensors) -> float:
    return max(
        (_cosine_distance(a, theirs[name]) for name, a in ours.items() if not a.dtype.hasobject), default=math.inf
    )


def _cosine_distance(ours: Array, theirs: Array) -> float:
    a, b = (_rows(array).astype(np.float64) for array in (ours, theirs))
    if a.shape != b.shape:
        return math.inf
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.array(~a.any(axis=1) & ~b.any(axis=1), dtype=np.float64)  # of two zero vectors: 1
    np.divide((a * b).sum(axis=1), norms, out=cosines, where=norms != 0)
    return 1.0 - float(cosines.min()) if np.isfinite(cosines).all() else math.inf


def _top1(ours: Tensors, theirs: Tensors) -> float:
    """Compare the first output: strings stand best first, of numbers the greatest counts."""
    name = next(iter(ours))
    a, b = (_first(_rows(array)) for array in (ours[name], theirs[name]))
    return float(np.mean(a != b)) if a.shape == b.shape else math.inf


def _first(rows: Array) -> Array:
    if rows.dtype.hasobject:
        return rows[:, 0]
    return rows[:, 0] if rows.shape[1] == 1 else rows.argmax(axis=1)


def _absolute(ours: Tensors, theirs: Tensors) -> float:
    return max(_greatest(array, theirs[name]) for name, array in ours.items())


def _greatest(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    a, b = ours.reshape(-1)[:_MAX_NUMBERS], theirs.reshape(-1)[:_MAX_NUMBERS]
    if not a.size:
        return 0.0
    if a.dtype.hasobject or b.dtype.hasobject:
        return float(np.max(a != b))
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, apart)
    return math.inf if np.isnan(apart).any() else float(apart.max())


def _rows(array: Array) -> Array:
    """Return an output as rows of numbers or strings, no more of them than may be compared."""
    rows = array.reshape(array.shape[0], -1) if array.ndim else array.reshape(1, 1)
    return rows[: max(_MAX_NUMBERS // max(rows.shape[1], 1), 1)]


_COMPARE: dict[Comparison, Callable[[Tensors, Tensors], float]] = {
    "cosine": _cosine,
    "top1": _top1,
    "absolute": _absolute,
}
