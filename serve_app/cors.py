"""Cross-origin requests: Starlette's middleware, made anew whenever the configuration changes.

Built by `serve_app.http.build_asgi`, outside of authentication: a browser asks before it sends a key.
"""

from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.config import CorsConfig

_METHODS = ("GET", "HEAD", "POST")
_TOLD = (
    "server-timing",
    "retry-after",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    *(f"x-ratelimit-{part}-{unit}" for part in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
    "retry-after-ms",
    "x-request-id",
    "x-cache",
    "x-cache-items",
    "x-arm",
    "x-fallback",
    "inference-header-content-length",
)  # response headers that scripts may read


class Cors:
    """Answers preflights and marks answers, for the origins configured now."""

    def __init__(self, app: ASGIApp, config: Callable[[], CorsConfig | None]) -> None:
        self._app = app
        self._config = config
        self._made_for: CorsConfig | None = None
        self._made: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer a preflight."""
        config = self._config()
        if config is not self._made_for:
            self._made_for, self._made = config, self._make(config)
        await self._made(scope, receive, send)

    def _make(self, config: CorsConfig | None) -> ASGIApp:
        if config is None:
            return self._app
        return CORSMiddleware(
            self._app,
            allow_origins=config.allow_origins,
            allow_methods=_METHODS,
            allow_headers=config.allow_headers,
            expose_headers=_TOLD,
            max_age=config.max_age_s,
        )
