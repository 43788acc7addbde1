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
    worst: Share | None = None
    requests: Share | None = None
    tokens: Share | None = None
    for share in shares:
        if worst is None or _is_tighter(share, worst):
            worst = share
        if share.unit == "requests":
            if requests is None or _is_tighter(share, requests):
                requests = share
        elif share.unit == "tokens" and (tokens is None or _is_tighter(share, tokens)):
            tokens = share
    if worst is None:
        return {}
    headers = {
        "ratelimit-limit": str(int(worst.limit)),
        "ratelimit-remaining": str(int(worst.left)),
        "ratelimit-reset": str(math.ceil(worst.reset_s)),
    }
    if requests is not None:
        headers["x-ratelimit-limit-requests"] = str(int(requests.limit))
        headers["x-ratelimit-remaining-requests"] = str(int(requests.left))
        headers["x-ratelimit-reset-requests"] = duration(requests.reset_s)
    if tokens is not None:
        headers["x-ratelimit-limit-tokens"] = str(int(tokens.limit))
        headers["x-ratelimit-remaining-tokens"] = str(int(tokens.left))
        headers["x-ratelimit-reset-tokens"] = duration(tokens.reset_s)
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
