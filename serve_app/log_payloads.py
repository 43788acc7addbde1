"""Inputs and predictions as the request log shows them: bounded, blacked out where told. Pure; runs in its thread."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import orjson
from pydantic import JsonValue

from deployments.types import DATATYPES, Array, Datatype, Tensors
from serve_app.request_log_config import Payloads

REDACTED = "[redacted]"
_LONGEST_SECRET = 1024  # of what is searched beyond what is shown
_NUMBER_BYTES = 8  # about what a number takes as text


class Shown:
    """Renders payloads by one configuration."""

    def __init__(self, config: Payloads) -> None:
        self._config = config
        self._patterns = [re.compile(pattern) for pattern in config.redact]

    def tensors(self, tensors: Tensors) -> dict[str, Any]:
        """Return tensors by name: datatype, shape, and as many values as fit."""
        left = self._config.max_bytes
        shown: dict[str, Any] = {}
        for name, array in tensors.items():
            if any(fnmatchcase(name, glob) for glob in self._config.hide):
                continue
            data, is_cut, n_bytes = self._data(array, left)
            left = max(left - n_bytes, 0)
            datatype = DATATYPES.get(array.dtype, Datatype.BYTES)
            shown[name] = {"datatype": datatype, "shape": list(array.shape), "data": data}
            if is_cut:
                shown[name]["cut"] = True
        return shown

    def parameters(self, params: Mapping[str, JsonValue]) -> str:
        """Return parameters as text."""
        return self._text(orjson.dumps(params, default=str), self._config.max_bytes)[0]

    def _data(self, array: Array, left: int) -> tuple[list[Any], bool, int]:
        """Return values, whether some are missing, and about how many bytes they take."""
        flat = array.reshape(-1)
        if not array.dtype.hasobject:
            n = min(flat.size, left // _NUMBER_BYTES)
            return _numbers(flat[:n]), n < flat.size, n * _NUMBER_BYTES
        values: list[str] = []
        used, is_cut = 0, False
        for value in flat:
            if used >= left:
                return values, True, used
            text, was_cut = self._text(value if isinstance(value, bytes) else str(value).encode(), left - used)
            values.append(text)
            used, is_cut = used + max(len(text), 1), is_cut or was_cut
        return values, is_cut, used

    def _text(self, value: bytes, limit: int) -> tuple[str, bool]:
        searched = limit + _LONGEST_SECRET
        text, is_cut = value[:searched].decode(errors="replace"), len(value) > searched
        for pattern in self._patterns:
            text = pattern.sub(REDACTED, text)
        if is_cut:  # what stands at the end may be half of a secret, which no pattern knows
            text = text[: max(len(text) - _LONGEST_SECRET, 0)]
        return text[:limit], is_cut or len(text) > limit


def _numbers(values: Array) -> list[Any]:
    return [None if isinstance(v, float) and not np.isfinite(v) else v for v in values.tolist()]


def size_of(tensors: Sequence[Tensors]) -> int:
    """Return about how many bytes tensors hold."""
    return sum(
        sum(map(len, array.flat)) if array.dtype.hasobject else array.nbytes
        for each in tensors
        for array in each.values()
    )
