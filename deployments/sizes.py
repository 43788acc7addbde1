"""Sizes in bytes as an operator writes them: a number, or "2GiB". Used wherever configuration has a size."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$")


def parse_bytes(value: object) -> object:
    """Turn "2GiB" into 2147483648; leave anything that is not a string to pydantic."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if not match or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write bytes, or a number with one of {', '.join(_UNITS)[2:]}")
    return int(float(match[1]) * _UNITS[match[2]])


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]
