"""What stands before Serve's own handling of HTTP, in each of its processes that listens: ours are all the answers.

Where our app is in the same process and free, a request goes to it by the short way (`short_way.py`). What goes through
Serve is given answers of Serve's own without asking us, and a header is read before our app does: here that header gets
a name Serve does not know, and what Serve says itself (too much waits, nothing is deployed) is said in the envelope of
its path. Serve builds it in where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH says `serve_app.front.middlewares`, or
`serve_app.front.long_way` to have Serve count, time and log each request as well; without it the endpoint works, and
only those answers are Serve's.
"""

import logging
from collections.abc import Iterable
from typing import TypeAlias

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import DeadlineExceeded, InvalidInput, Overloaded, PoolUnavailable, RouteNotFound, ServeError
from deployments.types import MONOTONIC, Clock
from serve_app.edges import OUR_TIMEOUT, TIMEOUT
from serve_app.error_headers import headers_of
from serve_app.middleware import NAMES_ITSELF
from serve_app.protocols import dialect_of
from serve_app.short_way import ShortWay, find

_log = logging.getLogger(__name__)
Header: TypeAlias = tuple[bytes, bytes]
_THEIRS = TIMEOUT.encode()
_OURS = OUR_TIMEOUT.encode()
_SERVES_OWN = "/-/"  # health and routes of a replica, for HAProxy
_RETRY_S = 1.0


def middlewares() -> list[Middleware]:
    """Return what Serve is to put around its own handling."""
    return [Middleware(Front)]


def long_way() -> list[Middleware]:
    """Return the same for operators who want Serve's own metrics of every request."""
    return [Middleware(Front, takes_short_way=False)]


class Front:
    """Hide the time limit from Serve, which would end the request with a bare 408, and tell its answers as ours."""

    def __init__(self, app: ASGIApp, clock: Clock = MONOTONIC, takes_short_way: bool = True) -> None:
        self._app = app
        self._clock = clock
        self._is_found = not takes_short_way
        self._short_way: ShortWay | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        if not self._is_found:  # Serve's replica is not complete before its first request
            self._is_found, self._short_way = True, find(self._app)
        telling = _Telling(scope, send, self._clock)
        try:
            scope = _without_limit(scope)
            if self._short_way is not None and self._short_way.is_open(scope, receive):
                scope[NAMES_ITSELF] = True
                await self._short_way(scope, receive, telling.send)
            else:
                await self._app(scope, receive, telling.send)
        except Exception as exc:
            if telling.has_begun:
                raise
            await telling.say(_stumbled_over(exc, scope["path"]))


class _Telling:
    """One answer on its way out."""

    def __init__(self, scope: Scope, send: Send, clock: Clock) -> None:
        self._scope = scope
        self._send = send
        self._clock = clock
        self._started = clock()
        self._bare: Message | None = None
        self.has_begun = False

    async def send(self, message: Message) -> None:
        """Pass a message on; of a bare answer only what it means."""
        self.has_begun = True
        if message["type"] == "http.response.start" and message["status"] >= 400 and _is_bare(message):
            self._bare = message  # its body says nothing that clients of a protocol could read
        elif self._bare is None:
            await self._send(message)
        elif not message.get("more_body", False):
            await self.say(_MEANINGS[self._bare["status"]], self._bare["headers"])

    async def say(self, error: ServeError, headers: Iterable[Header] = ()) -> None:
        """Answer with an error of ours; `headers` are Serve's."""
        scope, given = self._scope, {bytes(name).lower(): bytes(value) for name, value in headers}
        dialect = dialect_of(scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/"))
        body = dialect.envelope(error, given.get(b"x-request-id", b"").decode("latin-1"))
        added = {
            b"content-type": b"application/json",
            b"content-length": str(len(body)).encode(),
            **{name.encode(): value.encode() for name, value in headers_of(error).items()},
            b"server-timing": f"total;dur={(self._clock() - self._started) * 1e3:.3f}".encode(),
            **{name: value for name, value in given.items() if name in (b"x-request-id", b"retry-after")},
        }
        status = dialect.status(error)
        await self._send({"type": "http.response.start", "status": status, "headers": list(added.items())})
        await self._send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _without_limit(scope: Scope) -> Scope:
    for name, _ in scope["headers"]:
        if name == _THEIRS:
            renamed = [(_OURS if name == _THEIRS else name, value) for name, value in scope["headers"]]
            return {**scope, "headers": renamed}
    return scope


def _stumbled_over(exc: Exception, path: str) -> ServeError:
    if isinstance(exc, UnicodeDecodeError):  # Serve decodes some headers before anybody else looks at them
        return InvalidInput("headers: values that Serve reads, such as X-Request-ID, have to be UTF-8", field="headers")
    _log.error("Serve failed on a request to %s", ascii(path), exc_info=exc)
    return _MEANINGS[500]


def _is_bare(start: Message) -> bool:
    """Return whether an answer is Serve's: ours tell their timing, and preflights of CORS are neither's."""
    return start["status"] in _MEANINGS and not any(name == b"server-timing" for name, _ in start["headers"])


_MEANINGS: dict[int, ServeError] = {
    404: RouteNotFound("no application is deployed at this path"),
    408: DeadlineExceeded("the request was not answered in time"),
    429: Overloaded("too many requests wait at this endpoint", retry_after_s=_RETRY_S),
    500: ServeError("internal error"),
    503: PoolUnavailable("the endpoint takes no more requests for now", retry_after_s=_RETRY_S),
}
