"""What an HTTP error says outside its body: when to come back, how to come in, what would be right. Used by `http`."""

import math

from deployments.errors import MethodNotAllowed, ServeError, Unauthenticated, UnsupportedEncoding
from serve_app.compression import ENCODINGS


def headers_of(error: ServeError) -> dict[str, str]:
    """Return the headers of an error."""
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1e3))
    if error.status in (500, 501):  # what OpenAI's clients try again unasked
        headers["x-should-retry"] = "false"
    if isinstance(error, UnsupportedEncoding):
        headers["accept-encoding"] = ", ".join(ENCODINGS)
    allow = error.details.get("allow")
    if isinstance(error, MethodNotAllowed) and isinstance(allow, list):
        headers["allow"] = ", ".join(map(str, allow))
    return headers
