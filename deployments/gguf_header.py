"""How many numbers a GGUF file holds, by its header: what they take once they are unpacked. For `weights`."""

import math
import struct
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"GGUF"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its kind
_STRING, _ARRAY = 8, 9
_MOST = 2**24  # values in a list, tensors: more is a broken file
_MAX_DIMENSIONS = 8


def n_weights(file: Path) -> int | None:
    """Return the count of all tensors' elements; None where the header makes no sense."""
    try:
        with file.open("rb") as opened:
            return _count(opened)
    except (ValueError, KeyError, struct.error, OSError, OverflowError):
        return None


def _count(opened: BinaryIO) -> int:
    if opened.read(4) != _MAGIC:
        raise ValueError("not a GGUF file")
    _, n_tensors, n_fields = struct.unpack("<IQQ", opened.read(20))
    for _ in range(_bounded(n_fields)):
        _skip(opened, _STRING)
        _skip(opened, _number(opened, "<I"))
    total = 0
    for _ in range(_bounded(n_tensors)):
        _skip(opened, _STRING)
        n_dimensions = _number(opened, "<I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise ValueError("a tensor of so many dimensions")
        total += math.prod(_number(opened, "<Q") for _ in range(n_dimensions))
        opened.read(12)  # its kind, and where it is
    return total


def _skip(opened: BinaryIO, kind: int) -> None:
    """Pass over one value."""
    if kind == _STRING:
        opened.seek(_number(opened, "<Q"), 1)
    elif kind == _ARRAY:
        item, length = _number(opened, "<I"), _bounded(_number(opened, "<Q"))
        if item in _SIZES:
            opened.seek(_SIZES[item] * length, 1)
        else:
            for _ in range(length):
                _skip(opened, item)
    else:
        opened.seek(_SIZES[kind], 1)


def _number(opened: BinaryIO, layout: str) -> int:
    value: int
    (value,) = struct.unpack(layout, opened.read(struct.calcsize(layout)))
    return value


def _bounded(count: int) -> int:
    if count > _MOST:
        raise ValueError("a list of so many")
    return count
