"""What stands before Serve's own handling of HTTP, in each of its processes that listens: ours are all the answers.

Serve reads a header before our app does, and gives answers of its own without asking it. Here that header gets a name
Serve does not know, and what Serve says itself (too much waits, nothing is deployed) is said in the envelope of its
path. Serve builds it in where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH says `serve_app.front.middlewares`; without
it the endpoint works, and only those answers are Serve's.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import DeadlineExceeded, Overloaded, PoolUnavailable, RouteNotFound, ServeError
from deployments.types import MONOTONIC, Clock
from serve_app.edges import OUR_TIMEOUT, TIMEOUT
from serve_app.error_headers import headers_of
from serve_app.protocols import dialect_of

_THEIRS = TIMEOUT.encode()
_OURS = OUR_TIMEOUT.encode()
_SERVES_OWN = "/-/"  # health and routes of a replica, for HAProxy
_RETRY_S = 1.0


def middlewares() -> list[Middleware]:
    """Return what Serve is to put around its own handling."""
    return [Middleware(Front)]


class Front:
    """Hide the time limit from Serve, which would end the request with a bare 408, and tell its answers as ours."""

    def __init__(self, app: ASGIApp, clock: Clock = MONOTONIC) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        for name, _ in headers:
            if name == _THEIRS:
                renamed = [(_OURS if name == _THEIRS else name, value) for name, value in headers]
                scope = {**scope, "headers": renamed}
                break
        started = self._clock()
        bare: Message | None = None

        async def told(message: Message) -> None:
            nonlocal bare
            if message["type"] == "http.response.start" and message["status"] >= 400 and _is_bare(message):
                bare = message  # its body says nothing that clients of a protocol could read
            elif bare is None:
                await send(message)
            elif not message.get("more_body", False):
                await _say(bare, scope, send, self._clock() - started)

        await self._app(scope, receive, told)


def _is_bare(start: Message) -> bool:
    """Return whether an answer is Serve's: ours tell their timing, and preflights of CORS are neither's."""
    return start["status"] in _MEANINGS and not any(name == b"server-timing" for name, _ in start["headers"])


async def _say(bare: Message, scope: Scope, send: Send, seconds: float) -> None:
    given = {name.lower(): value for name, value in bare["headers"]}
    error = _MEANINGS[bare["status"]]
    dialect = dialect_of(scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/"))
    request_id = given.get(b"x-request-id", b"").decode("latin-1")
    body = dialect.envelope(error, request_id)
    headers = {
        b"content-type": b"application/json",
        b"content-length": str(len(body)).encode(),
        **{name.encode(): value.encode() for name, value in headers_of(error).items()},
        b"server-timing": f"total;dur={seconds * 1e3:.3f}".encode(),
        **{name: value for name, value in given.items() if name in (b"x-request-id", b"retry-after")},
    }
    await send({"type": "http.response.start", "status": dialect.status(error), "headers": list(headers.items())})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


_MEANINGS: dict[int, ServeError] = {
    404: RouteNotFound("no application is deployed at this path"),
    408: DeadlineExceeded("the request was not answered in time"),
    429: Overloaded("too many requests wait at this endpoint", retry_after_s=_RETRY_S),
    500: ServeError("internal error"),
    503: PoolUnavailable("the endpoint takes no more requests for now", retry_after_s=_RETRY_S),
}
