"""The HTTP side of the endpoint: the rows of `ENDPOINTS` as an ASGI app, and the one handler for all of them.

Built once an ingress replica by `serve_app.ingress`. Knows no protocol: rows parse, render and give errors their shape.
Cancellation passes through: Serve cancels the ASGI task when a client goes away.
"""

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.alarms import Alarms, Limit
from deployments.chunks import Chunk
from deployments.errors import BodyTooSlow, MethodNotAllowed, RouteNotFound, ServeError
from deployments.types import MONOTONIC, InferRequest, InferResult
from serve_app.audit import audit
from serve_app.config import EndpointConfig
from serve_app.context import Context, Door
from serve_app.cors import Cors
from serve_app.edges import check_head
from serve_app.error_headers import headers_of
from serve_app.middleware import REQUEST_ID, ROUTE, AccessLog, BodyLimit, Packing, TrailingSlash
from serve_app.protocols import ENDPOINTS, dialect_of
from serve_app.protocols.types import (
    Action,
    Command,
    Counted,
    Dialect,
    Endpoint,
    Models,
    RawRequest,
    Reply,
)
from serve_app.short_way import OURS
from serve_app.streaming import Streamed, send_stream, start_of

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_log = logging.getLogger(__name__)


class Gateway(Protocol):
    """What the edge needs of the endpoint."""

    @property
    def config(self) -> EndpointConfig:
        """The user_config in force."""

    async def authenticate(self, context: Context, headers: Mapping[str, str]) -> None:
        """Find out who asks and whether they may. Raises ServeError."""

    def visible(self, context: Context) -> Models:
        """Return what the codecs may ask about models on behalf of this caller."""

    async def infer(self, request: InferRequest, context: Context) -> InferResult:
        """Answer one request. Raises ServeError."""

    async def control(self, command: Command) -> None:
        """Do something to models; returns when it is done. Raises ServeError."""

    async def statistics(self) -> Counted:
        """Return what the pools have counted."""

    def stream(self, request: InferRequest, context: Context) -> AsyncGenerator[Sequence[Chunk], None]:
        """Yield one answer piece by piece. Raises ServeError before the first piece, or later."""

    async def metrics(self) -> bytes:
        """Return all metrics in Prometheus text."""

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one finished HTTP request."""

    def record(self, context: Context) -> None:
        """Write a finished request down."""


def build_asgi(gateway: Gateway, max_body_bytes: int) -> Starlette:
    """Return the ASGI app that serves every row of `ENDPOINTS` through `gateway`."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for row in ENDPOINTS:
        by_path.setdefault(row.path, {})[row.method] = row
    # Starlette tries one route after the other, 0.5 µs each: what is asked all the time comes first.
    order = sorted(by_path.items(), key=lambda entry: all(row.action is not Action.INFER for row in entry[1].values()))
    alarms = Alarms()
    routes = [_Prefixed(path, Resource(path, rows, gateway, alarms), methods=None) for path, rows in order]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(TrailingSlash),
            Middleware(AccessLog, observe=gateway.observe),
            Middleware(Cors, config=lambda: gateway.config.cors),
            Middleware(BodyLimit, max_bytes=max_body_bytes),
            Middleware(Packing, max_bytes=max_body_bytes),
        ],
    )
    setattr(app.state, OURS, True)
    app.router.redirect_slashes = False
    app.router.default = _Nothing(gateway)  # NOTE: no route `/{path:path}`, which a path with a newline does not match
    return app


class _Prefixed(Route):
    """A route that sees at a glance most paths that are not its own: Serve and Starlette each try one by one."""

    def __init__(self, path: str, endpoint: ASGIApp, methods: None) -> None:
        super().__init__(path, endpoint, methods=methods)
        self._start = path.partition("{")[0]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether this is the route of a request."""
        if not scope["path"].startswith(self._start) and not scope.get("root_path"):
            return Match.NONE, {}
        return super().matches(scope)


class Resource:
    """All methods of one path; an ASGI app."""

    def __init__(self, path: str, rows: Mapping[str, Endpoint], gateway: Gateway, alarms: Alarms) -> None:
        self._path = path
        self._alarms = alarms
        self._rows = dict(rows)
        if "GET" in rows:
            self._rows["HEAD"] = rows["GET"]
        self._dialect = next(iter(rows.values())).dialect
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens, unless its client is gone."""
        scope[ROUTE] = self._path
        context = Context(scope[REQUEST_ID], Door.HTTP, scope["method"], self._path)
        row = self._rows.get(scope["method"])
        try:
            reply = await self._reply(row, scope, receive, context) if row else self._no_such_method(context)
            if isinstance(reply, Streamed):
                await send_stream(reply, send, context)
            else:
                await _send(scope, send, reply, context)
        except ClientDisconnect:
            return
        finally:
            self._gateway.record(context)
            if context.action is Action.ADMIN:
                audit(f"{context.method} {context.route}", **context.audited(scope["path_params"]))

    async def _reply(self, row: Endpoint, scope: Scope, receive: Receive, context: Context) -> Reply | Streamed:
        context.action = row.action
        try:
            head = check_head(scope["headers"])
            await self._gateway.authenticate(context, head.headers)
            body = b"" if row.method == "GET" else await self._body(receive)
            raw = RawRequest(scope["path_params"], {}, head.headers, body, context.request_id)
            reply = await _answer(row, raw, self._gateway, context, head.limit_s)
        except ServeError as exc:
            return _error_reply(exc, row.dialect, context)
        except ClientDisconnect:
            raise
        except Exception:
            _log.exception("request %s to %s failed", context.request_id, self._path)
            hidden = ServeError(f"internal error; quote request id {context.request_id!r} to the operator")
            return _error_reply(hidden, row.dialect, context)
        if isinstance(reply, Reply):
            context.ended(reply.status)
        return reply

    async def _body(self, receive: Receive) -> bytes:
        timeout_s = self._gateway.config.body_timeout_s
        try:
            async with Limit(self._alarms, MONOTONIC() + timeout_s):
                return await _chunks(receive)
        except TimeoutError:
            raise BodyTooSlow(f"body: has not arrived within {timeout_s:g} s", field="body") from None

    def _no_such_method(self, context: Context) -> Reply:
        allow = sorted(self._rows)
        error = MethodNotAllowed(
            f"method {context.method} is not allowed here; use {', '.join(allow)}", allow=list(allow)
        )
        return _error_reply(error, self._dialect, context)


class _Nothing:
    """The answer for every path that no row has."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = Context(scope[REQUEST_ID], Door.HTTP, scope["method"])
        path = scope["path"]
        error = RouteNotFound(f"no endpoint at {path!r}; GET /openapi.json lists them all")
        await _send(scope, send, _error_reply(error, dialect_of(path), context), context)
        self._gateway.record(context)


async def _chunks(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _answer(
    row: Endpoint, raw: RawRequest, gateway: Gateway, context: Context, limit_s: float | None
) -> Reply | Streamed:
    models = gateway.visible(context)
    if row.parse:
        request, render = row.parse(raw, models)
        if limit_s is not None:
            request = request.with_timeout(min(limit_s, request.timeout_s or limit_s))
        if callable(render):
            return render(await gateway.infer(request, context))
        chunks = gateway.stream(request, context)
        return Streamed(await anext(chunks), chunks, render)  # an early failure still gets its own status
    if row.answer:
        return row.answer(raw, models)
    if row.count:
        return row.count(raw, models, await gateway.statistics())
    if row.control:
        command = row.control(raw, models)
        await gateway.control(command)
        return command.reply
    return Reply(await gateway.metrics(), media_type=METRICS_TYPE)


def _error_reply(error: ServeError, dialect: Dialect, context: Context) -> Reply:
    status = dialect.status(error)
    context.ended(status, error.code)
    return Reply(dialect.envelope(error, context.request_id), status, headers=headers_of(error))


async def _send(scope: Scope, send: Send, reply: Reply, context: Context) -> None:
    added = {
        "content-length": str(len(reply.body)),
        **context.headers,
        **reply.headers,
        "server-timing": context.server_timing(MONOTONIC()),
    }
    await send(start_of(reply.status, reply.media_type, added))
    body = b"" if scope["method"] == "HEAD" else reply.body
    await send({"type": "http.response.body", "body": body})
