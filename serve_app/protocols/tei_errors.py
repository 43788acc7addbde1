"""How Text Embeddings Inference says that something went wrong: its statuses, its kinds, its envelope.

Used by all its routes. `/rerank` is Jina's and vLLM's path, too, and answers by this table whoever asks there.
"""

from deployments.errors import ServeError
from serve_app.protocols.json_body import Wire, dump
from serve_app.protocols.types import Dialect

_STATUSES = {"invalid_input": 422, "input_too_long": 422, "engine_failure": 424, "not_served": 424}  # by code
_KINDS = {404: "NotFound", 429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Overloaded", 424: "Backend"}


class TeiError(Wire):
    """An error of TEI."""

    error: str
    error_type: str
    code: str
    request_id: str


def envelope(error: ServeError, request_id: str) -> bytes:
    """Render an error."""
    kind = "Empty" if error.code == "empty_input" else _KINDS.get(TEI.status(error), "Validation")
    return dump({"error": error.message, "error_type": kind, "code": error.code, "request_id": request_id})


TEI = Dialect(
    "Text Embeddings Inference",
    envelope,
    TeiError,
    (
        "/tei",
        "/embed",
        "/embed_all",
        "/embed_sparse",
        "/predict",
        "/rerank",
        "/similarity",
        "/tokenize",
        "/decode",
        "/info",
    ),
    _STATUSES,
)
