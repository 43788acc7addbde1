"""What decides an answer, hashed: a key for each row of a request, or one for all of it.

Used by `cache.py` only. Pure. Every part is written with its length, so that no two different requests can spell the
same bytes; request id, priority, deadline and trace decide nothing and are left out.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import orjson

from deployments.types import Array, InferRequest, ModelStatus

_DIGEST_BYTES = 20
_CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY


class Keys(NamedTuple):
    """The keys of one request. `rows` are the inputs that were taken apart; none: the only key stands for all of it."""

    keys: Sequence[bytes]
    rows: tuple[str, ...] = ()


def keys_of(model: ModelStatus, request: InferRequest) -> Keys | None:
    """Return the keys of a request to a cacheable model; None for one that no model takes: the pool says why."""
    inputs = request.inputs
    rows = tuple([name for name in model.rows if name in inputs])
    owner = None if model.is_cache_shared else request.tenant
    outputs = None if request.outputs is None else tuple(request.outputs)
    params = request.params
    try:
        # NOTE: whether there are parameters stands in what is shared, or else they could spell a row.
        base = _base(
            model.name, model.version, model.digest, model.task, owner, request.operation, outputs, rows, bool(params)
        )
        if params or len(inputs) > len(rows):
            base = base.copy()
        if params:
            _write(base, orjson.dumps(params, option=_CANONICAL))
        if len(inputs) > len(rows):
            for name in sorted(inputs.keys() - set(rows)):
                _write(base, name.encode())
                _write_array(base, inputs[name])
        if not rows:
            return Keys([base.digest()])
        columns = [_column(inputs[name]) for name in rows]
    except TypeError:  # a parameter that is not JSON, an element that is not bytes
        return None
    if not columns[0] or (len(columns) > 1 and any(len(column) != len(columns[0]) for column in columns)):
        return None
    return Keys([_row_key(base, row) for row in zip(*columns, strict=True)], rows)


@lru_cache(maxsize=1024)
def _base(*identity: object) -> blake2b:
    """Return the hash of what the requests of a caller to a model share; to be copied, never written to."""
    base = blake2b(digest_size=_DIGEST_BYTES)
    _write(base, orjson.dumps(identity))
    return base


def _row_key(base: blake2b, row: Sequence[bytes]) -> bytes:
    one = base.copy()
    for part in row:
        _write(one, part)
    return one.digest()


def _column(array: Array) -> list[bytes]:
    """Return the bytes of each row, its datatype and shape included where they are not those of a plain text."""
    if array.ndim == 1 and array.dtype.hasobject:
        return [_checked(element) for element in array]
    if not array.ndim:
        return []
    return [_array_bytes(array[row]) for row in range(array.shape[0])]


def _write_array(into: blake2b, array: Array) -> None:
    _write(into, _array_bytes(array))


def _array_bytes(array: Array) -> bytes:
    array = np.asarray(array)
    head = f"{array.dtype.str}{array.shape}".encode()
    if not array.dtype.hasobject:
        return head + array.tobytes()
    return head + b"".join(len(_checked(e)).to_bytes(8, "little") + e for e in array.flat)


def _checked(element: object) -> bytes:
    if type(element) is not bytes:
        raise TypeError("not bytes")
    return element


def _write(into: blake2b, part: bytes) -> None:
    into.update(len(part).to_bytes(8, "little"))
    into.update(part)
