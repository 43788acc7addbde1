"""Errors as the OpenAI client libraries read them. Used by every codec of that API."""

from deployments.errors import ModelNotFound, ServeError
from serve_app.protocols.json_body import dump
from serve_app.protocols.openai_schema import OpenAIError
from serve_app.protocols.types import Dialect

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def envelope(error: ServeError, request_id: str) -> bytes:
    """Render an error; the client library needs all four keys."""
    default = "invalid_request_error" if error.status < 500 else "server_error"
    body = {
        "message": error.message,
        "type": _TYPES.get(error.status, default),
        "param": error.details.get("field", "model" if isinstance(error, ModelNotFound) else None),
        "code": error.code,
    }
    return dump({"error": body})


_PREFIXES = (
    "/v1/embeddings",
    "/v1/models",
    "/v1/chat",
    "/v1/completions",
    "/v1/responses",
    "/v1/moderations",
    "/v1/score",
    "/openai/v1",
)
OPENAI = Dialect("OpenAI", envelope, OpenAIError, _PREFIXES)
