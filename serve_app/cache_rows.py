"""Requests with fewer rows, answers taken apart and put together again. Used by `cache.py` only. Pure."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deployments.types import Array, InferRequest, InferResult, ModelStatus, Timings, Usage
from serve_app.cache_keys import Keys
from serve_app.cache_store import Entry


def reduce(request: InferRequest, keys: Keys, rows: Sequence[int]) -> InferRequest:
    """Return the request with these rows only; itself where that is all of them."""
    if len(rows) == len(keys.keys):
        return request
    index = np.array(rows)
    inputs = {name: array[index] if name in keys.rows else array for name, array in request.inputs.items()}
    return replace(request, inputs=inputs)


def split(result: InferResult, keys: Keys, n_rows: int) -> list[Entry]:
    """Return an entry for each row of an answer; none where an output does not have that many rows."""
    outputs = result.outputs
    if not keys.rows:
        return [Entry({name: _own(array) for name, array in outputs.items()}, result.usage.n_tokens)]
    if not outputs:
        return []
    for array in outputs.values():
        if array.shape[:1] != (n_rows,):
            return []
    if n_rows == 1:
        return [Entry({name: _own(array) for name, array in outputs.items()}, result.usage.n_tokens)]
    costs = _row_tokens(result, n_rows)
    return [
        Entry({name: _own(array[row : row + 1]) for name, array in outputs.items()}, costs[row])
        for row in range(n_rows)
    ]


def merge(
    model: ModelStatus, request: InferRequest, keys: Keys, entries: Sequence[Entry], timings: Timings
) -> InferResult | None:
    """Return the answer made of these entries, one a row; None where they do not fit together."""
    first = entries[0].outputs
    if not keys.rows or len(entries) == 1:
        outputs = first
    elif any(_differ(name, entries) for name in first):
        return None
    else:
        outputs = {name: np.concatenate([entry.outputs[name] for entry in entries]) for name in first}
    usage = Usage(request.n_items, sum(entry.n_tokens for entry in entries))
    return InferResult(model.name, model.version, outputs, usage, timings, model.digest)


def _differ(name: str, entries: Sequence[Entry]) -> bool:
    shapes = {array.shape if (array := entry.outputs.get(name)) is not None else None for entry in entries}
    return len(shapes) > 1


def _own(array: Array) -> Array:
    """Return an array that holds no other's memory, and that nobody can change."""
    own = array.copy() if array.base is not None else array
    own.flags.writeable = False
    return own


def _row_tokens(result: InferResult, n_rows: int) -> list[int]:
    """Return what each row cost. What all share (a ranker's query) is counted with the first."""
    costs = result.item_tokens
    each, shared = divmod(len(costs), n_rows)
    if not each:
        even, rest = divmod(result.usage.n_tokens, n_rows)
        return [even + (row < rest) for row in range(n_rows)]
    tokens = [sum(costs[shared + row * each : shared + (row + 1) * each]) for row in range(n_rows)]
    tokens[0] += sum(costs[:shared])
    return tokens
