"""Errors and paths that all codecs of the Open Inference Protocol V2 share."""

from deployments.errors import ModelNotFound, ServeError
from serve_app.protocols.json_body import dump
from serve_app.protocols.types import Dialect
from serve_app.protocols.v2_schema import V2Error

MODEL = "/v2/models/{model}"
VERSION = "/v2/models/{model}/versions/{version}"
_UNKNOWN_MODEL = "unknown model"


def message_of(error: ServeError) -> str:
    """Return an error's message; for an unknown model it holds the words Triton's clients look for."""
    if not isinstance(error, ModelNotFound):
        return error.message
    is_said = error.message.startswith(_UNKNOWN_MODEL)
    return f"Request for {error.message}" if is_said else f"Request for {_UNKNOWN_MODEL}: {error.message}"


def envelope(error: ServeError, request_id: str) -> bytes:
    """Render an error."""
    body = {"error": message_of(error), "code": error.code, "details": error.details, "request_id": request_id}
    return dump(body)


V2 = Dialect("Open Inference Protocol V2", envelope, V2Error, ("/v2",))
