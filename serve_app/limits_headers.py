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
    worst: Share | None = None
    for share in shares:
        known = tightest.get(share.unit)
        if known is None or _is_tighter(share, known):
            tightest[share.unit] = share
        if worst is None or _is_tighter(share, worst):
            worst = share
    if worst is None:
        return {}
    headers = {
        "ratelimit-limit": str(int(worst.limit)),
        "ratelimit-remaining": str(int(worst.left)),
        "ratelimit-reset": str(math.ceil(worst.reset_s)),
    }
    if (told := tightest.get("requests")) is not None:
        headers["x-ratelimit-limit-requests"] = str(int(told.limit))
        headers["x-ratelimit-remaining-requests"] = str(int(told.left))
        headers["x-ratelimit-reset-requests"] = duration(told.reset_s)
    if (told := tightest.get("tokens")) is not None:
        headers["x-ratelimit-limit-tokens"] = str(int(told.limit))
        headers["x-ratelimit-remaining-tokens"] = str(int(told.left))
        headers["x-ratelimit-reset-tokens"] = duration(told.reset_s)
    return headers


def _is_tighter(share: Share, than: Share) -> bool:
    return share.left * than.limit < than.left * share.limit


def duration(seconds: float) -> str:
    """Return a time as OpenAI's API writes it: 20ms, 1.5s, 6m0s, 2h5m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1e3)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
