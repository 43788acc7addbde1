"""How often Python looks for circles of garbage in a serving process. Called once by `Pool` and by the ingress."""

import gc

# New containers, less those gone again, until the youngest are looked through; Python's own 700 are reached several
# times a request with 64 of them open, and almost nothing found there is garbage: a fifth of an ingress's CPU.
_YOUNG = 20_000


def collect_seldom() -> None:
    """Look through new objects less often; what a circle holds is kept a little longer."""
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
