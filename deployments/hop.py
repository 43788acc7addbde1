"""Requests and outcomes as they cross a handle call: plain rows, and the numbers of all arrays in one buffer.

Pickled one by one, each request, result and array costs several times as much (`benchmarks/hop.py`). Rows follow the
fields of the dataclasses, so a field added there crosses by itself. Called by both sides of the hop:
`serve_app.handles` and `deployments.pool`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeAlias

import numpy as np

from deployments.errors import ServeError
from deployments.types import Array, InferRequest, InferResult, Outcome, Timings, Usage

# Rows, and the buffer their arrays lie in; made of what pickles fast.
Packed: TypeAlias = tuple[list[Any], bytearray]

_ALIGNMENT = 8


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


_REQUEST, _RESULT = _names(InferRequest), _names(InferResult)
_INPUTS, _TIMEOUT = _REQUEST.index("inputs"), _REQUEST.index("timeout_s")
_OUTPUTS, _USAGE, _TIMINGS = (_RESULT.index(name) for name in ("outputs", "usage", "timings"))
_of_request, _of_result = attrgetter(*_REQUEST), attrgetter(*_RESULT)
_of_usage, _of_timings = attrgetter(*_names(Usage)), attrgetter(*_names(Timings))


def pack_requests(requests: Sequence[InferRequest], timeouts_s: Sequence[float | None]) -> Packed:
    """Pack requests, each with the time it has left."""
    buffer = _Buffer()
    rows = []
    for request, timeout_s in zip(requests, timeouts_s, strict=True):
        row = list(_of_request(request))
        row[_INPUTS] = buffer.put_all(row[_INPUTS])
        row[_TIMEOUT] = timeout_s
        rows.append(row)
    return rows, buffer.joined()


def unpack_requests(packed: Packed) -> list[InferRequest]:
    """Return what `pack_requests` was given; arrays may be written to."""
    rows, buffer = packed
    for row in rows:
        row[_INPUTS] = _take_all(row[_INPUTS], buffer)
    return [InferRequest(*row) for row in rows]


def pack_outcomes(outcomes: Sequence[Outcome]) -> Packed:
    """Pack results, and errors as they are."""
    buffer = _Buffer()
    rows: list[Any] = []
    for outcome in outcomes:
        if isinstance(outcome, ServeError):
            rows.append(outcome)
            continue
        row = list(_of_result(outcome))
        row[_OUTPUTS] = buffer.put_all(row[_OUTPUTS])
        row[_USAGE], row[_TIMINGS] = _of_usage(row[_USAGE]), _of_timings(row[_TIMINGS])
        rows.append(row)
    return rows, buffer.joined()


def unpack_outcomes(packed: Packed) -> list[Outcome]:
    """Return what `pack_outcomes` was given."""
    rows, buffer = packed
    outcomes: list[Outcome] = []
    for row in rows:
        if isinstance(row, ServeError):
            outcomes.append(row)
            continue
        row[_OUTPUTS] = _take_all(row[_OUTPUTS], buffer)
        row[_USAGE], row[_TIMINGS] = Usage(*row[_USAGE]), Timings(*row[_TIMINGS])
        outcomes.append(InferResult(*row))
    return outcomes


class _Buffer:
    """Arrays laid end to end, each where its numbers are aligned."""

    def __init__(self) -> None:
        self._parts: list[Any] = []
        self._size = 0

    def put_all(self, tensors: Mapping[str, Array]) -> list[tuple[Any, ...]]:
        return [(name, *self._put(array)) for name, array in tensors.items()]

    def _put(self, array: Array) -> tuple[Any, ...]:
        if array.dtype.hasobject:
            return None, array.shape, array.ravel().tolist()
        offset = self._size
        padding = -array.nbytes % _ALIGNMENT
        self._parts.append(np.ascontiguousarray(array).data)
        if padding:
            self._parts.append(bytes(padding))
        self._size += array.nbytes + padding
        return array.dtype.str, array.shape, offset

    def joined(self) -> bytearray:
        return bytearray().join(self._parts)


def _take_all(rows: list[tuple[Any, ...]], buffer: bytearray) -> dict[str, Array]:
    return {name: _take(dtype, shape, where, buffer) for name, dtype, shape, where in rows}


def _take(dtype: str | None, shape: tuple[int, ...], where: Any, buffer: bytearray) -> Array:
    if dtype is None:
        array: Array = np.empty(len(where), dtype=np.object_)
        array[:] = where
        return array.reshape(shape)
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(buffer, dtype, count, where).reshape(shape)
