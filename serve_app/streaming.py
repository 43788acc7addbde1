"""A streamed answer as an HTTP body, sent while it is generated. Called by `http.py`, which has its first piece.

The status line goes out with that first piece, so what fails before it has its own status; what fails later is the
body's last piece. A slow client holds up this request alone: `send` waits for it.
"""

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from starlette.types import Message, Send

from deployments.chunks import Chunk
from deployments.errors import ServeError
from deployments.types import MONOTONIC
from serve_app.context import Context
from serve_app.protocols.types import StreamRender

_log = logging.getLogger(__name__)
# Proxies on the way are asked to pass pieces on as they come.
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer that has begun: its first piece, and what is still to come."""

    first: Sequence[Chunk]
    chunks: AsyncGenerator[Sequence[Chunk], None]
    render: StreamRender


async def send_stream(answer: Streamed, send: Send, context: Context) -> None:
    """Send an answer as it comes, whatever becomes of it; stops the generation if the client leaves."""
    render = answer.render
    headers = {**_HEADERS, **context.headers, "server-timing": context.server_timing(MONOTONIC())}
    async with aclosing(answer.chunks) as chunks:
        await send(start_of(200, render.media_type, headers))
        try:
            await _piece(send, render.chunks(answer.first))
            async for ready in chunks:
                await _piece(send, render.chunks(ready))
            last = render.end()
            context.ended(200)
        except ServeError as exc:
            context.ended(200, exc.code)
            last = render.error(exc, context.request_id)
        except Exception:
            _log.exception("request %s to %s failed while it streamed", context.request_id, context.route)
            hidden = ServeError(f"internal error; quote request id {context.request_id!r} to the operator")
            context.ended(200, hidden.code)
            last = render.error(hidden, context.request_id)
        await send({"type": "http.response.body", "body": last})


def start_of(status: int, media_type: str, headers: Mapping[str, str]) -> Message:
    """Return the ASGI message that begins an answer."""
    lines = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", media_type.encode("latin-1")), *lines],
    }


async def _piece(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})
