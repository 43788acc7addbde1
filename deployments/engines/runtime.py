"""What a pool says to torch itself, so that `deployments.pool` need not import it."""

import ctypes

import torch
from threadpoolctl import threadpool_limits

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MALLOC_MIB = {_M_MMAP_THRESHOLD: 32, _M_TRIM_THRESHOLD: 256, _M_TOP_PAD: 64}  # 32 is the most it takes


def give_back() -> None:
    """Give freed memory back to the system.

    NOTE: glibc keeps it for itself otherwise; a replica that has loaded a hundred models then looks, to whoever limits
    its memory, as if it still had them. No garbage is collected here: that stops every thread for a third of a second,
    and engines leave none.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def set_up(threads: int | None) -> None:
    """Use this many threads for one operation, in torch and in numpy.

    None keeps what OMP_NUM_THREADS says (Ray sets it to the replica's num_cpus).
    """
    if threads is not None:
        torch.set_num_threads(threads)
        threadpool_limits(threads, user_api="blas")
    _keep_freed()


def _keep_freed() -> None:
    """Have glibc keep what one batch freed for the next.

    It gives the end of its heap back at once otherwise, and fetching that again, page by page, costs up to a twelfth
    of the CPU of a batch of long texts. `give_back` still gives back all of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, mib in _MALLOC_MIB.items():
            mallopt(option, mib * 2**20)


def is_usable(device: str) -> bool:
    """Return whether the device still works; after a CUDA fault it does not until the process ends."""
    if not device.startswith("cuda"):
        return True
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True
