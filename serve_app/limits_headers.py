"""What a caller is told of its limits, in the headers that clients read: `RateLimit-*` and OpenAI's `x-ratelimit-*`.

Of several limits the one nearest its end is told: `RateLimit-*` of all units, `x-ratelimit-*` of requests and tokens.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple


class Share(NamedTuple):
    """One limit: how much of it is left, and the seconds until all of it is back."""

    unit: str
    limit: float
    left: float
    reset_s: float


def headers_of(shares: Iterable[Share]) -> dict[str, str]:
    """Return the headers for these limits."""
    tightest: dict[str, Share] = {}
    for share in shares:
        known = tightest.get(share.unit)
        if known is None or share.left * known.limit < known.left * share.limit:
            tightest[share.unit] = share
    if not tightest:
        return {}
    worst = min(tightest.values(), key=lambda share: share.left / share.limit)
    headers = {
        "ratelimit-limit": f"{worst.limit:.0f}",
        "ratelimit-remaining": f"{math.floor(worst.left)}",
        "ratelimit-reset": f"{math.ceil(worst.reset_s)}",
    }
    for unit in ("requests", "tokens"):
        if (told := tightest.get(unit)) is not None:
            headers[f"x-ratelimit-limit-{unit}"] = f"{told.limit:.0f}"
            headers[f"x-ratelimit-remaining-{unit}"] = f"{math.floor(told.left)}"
            headers[f"x-ratelimit-reset-{unit}"] = duration(told.reset_s)
    return headers


def duration(seconds: float) -> str:
    """Return a time as OpenAI's API writes it: 20ms, 1.5s, 6m0s, 2h5m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1e3)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
