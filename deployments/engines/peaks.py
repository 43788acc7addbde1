"""How much memory a batch takes beside the weights, measured while it runs. Called in the device thread.

On a GPU by torch's own count; on a CPU by the high-water mark that Linux keeps of the process, which is right as long
as nothing else grows meanwhile: the caller throws the measurement away if a model moved.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from deployments.types import Item

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"


def run_measured(
    run: Callable[[Sequence[Item]], Sequence[Any]], items: Sequence[Item], device: str
) -> tuple[Sequence[Any], int | None]:
    """Run a batch; return its outputs and the bytes it took at most, None where that cannot be told."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        outputs = run(items)
        return outputs, max(torch.cuda.max_memory_allocated(device) - before, 0)
    resident = _reset_high_water()
    outputs = run(items)
    highest = _read("VmHWM") if resident is not None else None
    return outputs, max(highest - resident, 0) if highest is not None and resident is not None else None


def _reset_high_water() -> int | None:
    try:
        _CLEAR.write_text(_RESET_HIGH_WATER)
    except OSError:
        return None  # not Linux, or not allowed in this container
    return _read("VmRSS")


def _read(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
