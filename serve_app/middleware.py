"""Pure ASGI classes around the routes, outermost first: one path for two spellings, access log, body limit, packing.

Built by `serve_app.http.build_asgi`. They know nothing of protocols: a body over the limit is raised to the route,
which answers in its own envelope.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import BodyTooLarge
from deployments.logs import Line, write_lines
from deployments.types import MONOTONIC, Clock
from serve_app.compression import MIN_BYTES, accepted, encoding_of, pack, unpack

# Switched off by `ACCESS.disabled = True` (user_config `access_log: false`).
ACCESS = logging.getLogger("serve_app.access")
REQUEST_ID = "serve_app.request_id"  # scope keys that the access log and the routes share
ROUTE = "serve_app.route"
NAMES_ITSELF = "serve_app.names_itself"  # set where nobody else tells the client the request's id
UNMATCHED = "unmatched"
CLIENT_GONE = 499
_GATHER_S = 0.1
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_MAX_ID = 128

Observe: TypeAlias = Callable[[str, str, int, float], None]  # method, route, status, seconds


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of this lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


class TrailingSlash:
    """Serve `/v2/` as `/v2`, without a redirect that would cost clients their POST body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under its path without the slash."""
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


class Gathered:
    """Lines of the access log: one that comes alone is written at once, those of a busy tenth of a second together.

    What `logging` and Serve's handlers do for a record costs some 60 µs, however little it says.
    """

    def __init__(self) -> None:
        self._waiting: list[Line] = []
        self._is_busy = False

    def add(self, line: Line) -> None:
        """Write a line, now or soon."""
        if self._is_busy:
            self._waiting.append(line)
            return
        write_lines(ACCESS, [line])
        self._wait()

    def _wait(self) -> None:
        self._is_busy = True
        asyncio.get_running_loop().call_later(_GATHER_S, self._write)

    def _write(self) -> None:
        self._is_busy = False
        if self._waiting:
            write_lines(ACCESS, self._waiting)
            self._waiting.clear()
            self._wait()


class AccessLog:
    """Name each request, and once it is finished count it and write one line.

    The id is the `X-Request-ID` that came, from the client or from Serve, else a new one; Serve sends it back, unless
    the request came past it. A request whose client went away before the answer began counts as 499.
    """

    def __init__(self, app: ASGIApp, observe: Observe, clock: Clock = MONOTONIC) -> None:
        self._app = app
        self._observe = observe
        self._clock = clock
        self._lines = Gathered()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then count and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        status = CLIENT_GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if NAMES_ITSELF in scope:
                    message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        given = header(scope, b"x-request-id") or ""
        is_plain = given.isascii() and given.isprintable()  # anything else could forge lines of the log
        request_id = scope[REQUEST_ID] = given[:_MAX_ID] if given and is_plain else uuid.uuid4().hex
        try:
            await self._app(scope, receive, watched)
        finally:
            self._finish(scope, status, self._clock() - started)

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._observe(method, scope.get(ROUTE, UNMATCHED), status, seconds)
        if ACCESS.isEnabledFor(logging.INFO):
            path = scope["path"] if scope["path"].isprintable() else ascii(scope["path"])
            request_id = scope[REQUEST_ID]
            self._lines.add(Line(f"{method} {path} {status} {seconds * 1e3:.1f}ms {request_id}", request_id))


class BodyLimit:
    """Raise `BodyTooLarge` to whoever reads the body: at once by Content-Length, else as soon as it is over."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = header(scope, b"content-length") or ""
        n_bytes = 0

        async def limited() -> Message:
            nonlocal n_bytes
            if declared.isdecimal() and int(declared) > self._max_bytes:
                raise self._too_large(int(declared))
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_bytes:
                raise self._too_large(n_bytes)
            return message

        await self._app(scope, limited, send)

    def _too_large(self, n_bytes: int) -> BodyTooLarge:
        return BodyTooLarge(
            f"body: request of {n_bytes} bytes or more exceeds the maximum of {self._max_bytes} bytes; "
            "send fewer items a request",
            field="body",
            max_bytes=self._max_bytes,
        )


class Packing:
    """Unpack bodies that came as gzip or deflate, pack big answers for clients that accept it, but no streams.

    What is wrong with a body is raised to the route that reads it. Packing runs in a thread: it takes milliseconds.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on unpacked, and its answer packed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (header(scope, b"content-encoding") or "identity") != "identity":
            receive = self._unpacking(scope, receive)
        if encoding := accepted(header(scope, b"accept-encoding") or ""):
            send = _packing(send, encoding)
        await self._app(scope, receive, send)

    def _unpacking(self, scope: Scope, receive: Receive) -> Receive:
        packed = bytearray()

        async def unpacked() -> Message:
            encoding = encoding_of(header(scope, b"content-encoding") or "")
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                packed.extend(message.get("body", b""))
                more = message.get("more_body", False)
            body = bytes(packed)
            packed.clear()
            if encoding and body:
                body = await asyncio.to_thread(unpack, body, encoding, self._max_bytes)
            return {"type": "http.request", "body": body, "more_body": False}

        return unpacked


def _packing(send: Send, encoding: str) -> Send:
    start: Message = {}

    async def packed(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and any(
            name == b"content-length" for name, _ in message["headers"]
        ):
            start = message  # held until its body is known; a stream says no length
            return
        if start:
            body = message.get("body", b"")
            if len(body) >= MIN_BYTES and not message.get("more_body", False):
                body = await asyncio.to_thread(pack, body, encoding)
                message = {**message, "body": body}
                kept = [(name, value) for name, value in start["headers"] if name != b"content-length"]
                added = {b"content-encoding": encoding, b"content-length": str(len(body)), b"vary": "Accept-Encoding"}
                start = {**start, "headers": [*kept, *((name, value.encode()) for name, value in added.items())]}
            await send(start)
            start = {}
        await send(message)

    return packed
