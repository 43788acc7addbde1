"""What a request's headers may be, before anything else is looked at: few, small, unambiguous, and no orders to Serve.

Serve reads its control headers before us, so they cannot be stripped; one that would harm is answered 400. Pure;
called by `http.py` for every request.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deployments.errors import HeadersTooLarge, InvalidInput

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 2**10
TIMEOUT = "x-request-timeout-seconds"
OUR_TIMEOUT = "x-model-endpoint-timeout-seconds"  # the same, after `front.py` has hidden it from Serve
# The first would keep work running for a client that has left; the second is how Serve marks calls between replicas.
_FORBIDDEN = ("x-request-disconnect-disabled", "serve_multiplexed_model_id")
_SUSPECT = (b"x-request-d", b"serve")  # Serve takes - and _ for the same in the second
# Two of these, and a proxy in front may have looked at the other one.
_SINGLE = frozenset(
    (
        b"authorization",
        b"x-api-key",
        b"content-length",
        b"content-encoding",
        b"content-type",
        TIMEOUT.encode(),
        OUR_TIMEOUT.encode(),
    )
)
# Where Serve sees the header, it ends the request itself with a bare 408: our 504 in the protocol's envelope has to be
# earlier, which it is unless the loop is late by more than that.
_AHEAD, _AHEAD_S = 0.2, 0.05


@dataclass(frozen=True, slots=True)
class Head:
    """Checked headers by lower-case name, and the time the client gives, if it does."""

    headers: Mapping[str, str]
    limit_s: float | None


def check_head(raw: Iterable[tuple[bytes, bytes]]) -> Head:
    """Return the headers of a request.

    Raises:
        HeadersTooLarge: too many, or too long together.
        InvalidInput: one of Serve's that would harm, a single one sent twice, or a time limit that is none.
    """
    headers: dict[str, str] = {}
    n_bytes = 0
    for n_seen, (key, value) in enumerate(raw):
        n_bytes += len(key) + len(value)
        if n_seen >= MAX_HEADERS or n_bytes > MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"headers: more than {MAX_HEADERS}, or than {MAX_HEADER_BYTES} bytes together")
        name = key.decode("latin-1")
        if key in _SINGLE and name in headers:
            name = TIMEOUT if name == OUR_TIMEOUT else name
            raise InvalidInput(f"{name}: is sent more than once", field=name)
        if key.startswith(_SUSPECT) and (name if name[0] == "x" else name.replace("-", "_")) in _FORBIDDEN:
            raise InvalidInput(f"{name}: is not allowed; leave the header out", field=name)
        headers[name] = value.decode("latin-1")
    if OUR_TIMEOUT in headers:
        return Head(headers, _time_limit(headers[OUR_TIMEOUT]))
    if TIMEOUT not in headers:
        return Head(headers, None)
    limit_s = _time_limit(headers[TIMEOUT])
    return Head(headers, limit_s - min(limit_s * _AHEAD, _AHEAD_S))


def _time_limit(text: str) -> float:
    try:
        limit_s = float(text)
    except ValueError:
        limit_s = math.nan
    if not (math.isfinite(limit_s) and limit_s > 0):
        raise InvalidInput(f"{TIMEOUT}: must be a number of seconds above 0", field=TIMEOUT)
    return limit_s
