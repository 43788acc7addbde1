"""What a pool says to torch itself, so that `deployments.pool` need not import it."""

import torch


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
