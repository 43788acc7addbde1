"""How many bytes a model's weights are going to take on a device, from the headers of its files alone.

Called by `deployments.loader` before a load and by `serve_app.validation`. Reads kilobytes, however large the files.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deployments.gguf_header import n_weights

SAFETENSORS, GGUF = ".safetensors", ".gguf"
_MAX_HEADER = 100 * 2**20  # the format's own bound


def expected_bytes(files: Iterable[Path], dtype: str, device: str) -> int:
    """Return the bytes of the weights in these files once they are on `device` as `dtype` (as a model's entry has it).

    Floating-point tensors are converted, GGUF's are unpacked, others stay what they are; files of other formats count
    as they are.
    """
    bits = 32 if dtype == "float32" or (dtype == "auto" and not device.startswith("cuda")) else 16
    return sum(_bytes(file, bits) for file in files)


def _bytes(file: Path, float_bits: int) -> int:
    if file.suffix == SAFETENSORS:
        return _in_safetensors(file, float_bits)
    if file.suffix == GGUF and (count := n_weights(file)) is not None:
        return count * float_bits // 8
    return file.stat().st_size


def _in_safetensors(file: Path, float_bits: int) -> int:
    tensors = _header(file)
    if tensors is None:
        return file.stat().st_size  # broken: the load is going to say how
    return sum(_tensor_bytes(entry, float_bits) for name, entry in tensors.items() if name != "__metadata__")


def _tensor_bytes(entry: Mapping[str, Any], float_bits: int) -> int:
    begin, end = entry["data_offsets"]
    kind = str(entry["dtype"])
    if not kind.startswith(("F", "BF")):
        return int(end - begin)
    return int(math.prod(entry["shape"])) * float_bits // 8


def _header(file: Path) -> dict[str, Any] | None:
    with file.open("rb") as opened:
        head = opened.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else _MAX_HEADER + 1
        if size > _MAX_HEADER:
            return None
        try:
            header = json.loads(opened.read(size))
        except ValueError:
            return None
    is_sound = isinstance(header, dict) and all(
        isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} <= entry.keys()
        for name, entry in header.items()
        if name != "__metadata__"
    )
    return header if is_sound else None
