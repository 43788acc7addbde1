"""What a pool says to torch itself, so that `deployments.pool` need not import it."""

import ctypes

import torch


def give_back() -> None:
    """Give freed memory back to the system.

    NOTE: glibc keeps it for itself otherwise; a replica that has loaded a hundred models then looks, to whoever limits
    its memory, as if it still had them. No garbage is collected here: that stops every thread for a third of a second,
    and engines leave none.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def set_threads(threads: int | None) -> None:
    """Use this many intra-op threads; None keeps what OMP_NUM_THREADS says (Ray sets it to the replica's num_cpus)."""
    if threads is not None:
        torch.set_num_threads(threads)


def is_usable(device: str) -> bool:
    """Return whether the device still works; after a CUDA fault it does not until the process ends."""
    if not device.startswith("cuda"):
        return True
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True
