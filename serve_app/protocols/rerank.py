"""Reranking as Cohere's v1 and v2, Jina's and vLLM's clients ask for it: one schema, which answers them all.

Called through the rows in `ENDPOINTS`; Text Embeddings Inference's own `/rerank` is in `tei`. Long documents are cut,
as these services do, rather than refused. Scores are the model's: 0 to 1 for most cross-encoders, cosines for
bi-encoders.
"""

from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema

from deployments.errors import InvalidInput, ServeError
from deployments.types import Array, InferRequest, InferResult, Task, text_array
from serve_app.protocols.choosing import model_for
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.types import Action, Dialect, Endpoint, Models, RawRequest, Render, Reply

MAX_DOCUMENTS = 2048
_SEARCH_UNIT = 100  # documents, as Cohere bills them
_DOCUMENTS: Any = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_DOCUMENTS,
    "items": {"anyOf": [{"type": "string"}, {"type": "object"}]},
}


class RerankRequest(Wire):
    """Documents to be put in order."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "rank", "query": "a pet", "documents": ["a cat", "a stock price"], "top_n": 1}]
        }
    )

    model: str | None = Field(default=None, description="may be left out where one model here ranks")
    query: str = Field(min_length=1)
    documents: Annotated[list[JsonValue], WithJsonSchema(_DOCUMENTS)]
    top_n: int | None = Field(default=None, ge=1, description="how many to return; default all")
    return_documents: bool | None = None
    rank_fields: list[str] | None = Field(default=None, description="fields of document objects to read; default text")
    max_tokens_per_doc: int | None = Field(default=None, ge=1, description="accepted; documents are cut to the model")
    max_chunks_per_doc: int | None = Field(default=None, ge=1, description="accepted; a document is one chunk")
    priority: int | None = Field(default=None, description="accepted; the operator decides, by key")
    user: str | None = None
    truncate_prompt_tokens: int | None = Field(default=None, description="accepted; documents are cut to the model")


class RerankedDocument(Wire):
    """A document's text."""

    text: str


class RerankLine(Wire):
    """One document by its place in the request."""

    index: int
    relevance_score: float | None
    document: RerankedDocument | None = None


class ApiVersion(Wire):
    """Cohere's."""

    version: str


class BilledUnits(Wire):
    """Cohere's; nobody is billed here."""

    search_units: int


class RerankMeta(Wire):
    """Cohere's."""

    api_version: ApiVersion
    billed_units: BilledUnits


class RerankUsage(Wire):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(Wire):
    """The best documents, the best first."""

    id: str
    object: str
    model: str
    results: list[RerankLine]
    meta: RerankMeta
    usage: RerankUsage


class RerankError(Wire):
    """An error of these APIs."""

    message: str
    code: str
    details: dict[str, JsonValue]
    request_id: str


def envelope(error: ServeError, request_id: str) -> bytes:
    """Render an error."""
    body = {"message": error.message, "code": error.code, "details": error.details, "request_id": request_id}
    return dump(body)


def parse_rerank(version: str, shows_documents: bool, raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read a rerank request; `shows_documents` is this path's default."""
    body = parse_body(raw.body, RerankRequest)
    name, _ = model_for(raw.path.get("model", body.model), (Task.TEXT_RANKING,), models, "rerank requests")
    texts = [_text(document, index, body.rank_fields) for index, document in enumerate(body.documents)]
    if not 0 < len(texts) <= MAX_DOCUMENTS:
        raise InvalidInput(f"documents: has {len(texts)}, must be 1 to {MAX_DOCUMENTS}", field="documents")
    shows = shows_documents if body.return_documents is None else body.return_documents
    inputs = {"query": text_array([body.query]), "text": text_array(texts)}
    request = InferRequest(name, inputs, params={"truncate": True}, request_id=raw.request_id, user=body.user or "")
    return request, partial(_render, version, raw.request_id, body.top_n, texts if shows else None)


RERANK = Dialect("Rerank", envelope, RerankError, ("/v1/rerank", "/v2/rerank"))
_rerank = partial(Endpoint, "POST", action=Action.INFER, dialect=RERANK, request=RerankRequest, response=RerankResponse)
ROWS = (
    _rerank("/v1/rerank", summary="Rank documents (Cohere v1, Jina, vLLM)", parse=partial(parse_rerank, "1", True)),
    _rerank("/v2/rerank", summary="Rank documents (Cohere v2)", parse=partial(parse_rerank, "2", False)),
)


def best_first(scores: Array) -> list[int]:
    """Return places by falling score; equal ones in their order."""
    order: list[int] = np.argsort(-scores.astype(np.float64), kind="stable").tolist()
    return order


def _text(document: JsonValue, index: int, fields: list[str] | None) -> str:
    if isinstance(document, str):
        return document
    if not isinstance(document, dict):
        raise InvalidInput(
            f"documents[{index}]: must be a string or an object with 'text'", field=f"documents[{index}]"
        )
    texts: list[str] = []
    for name in fields or ["text"]:
        part = document.get(name)
        if not isinstance(part, str):
            raise InvalidInput(f"documents[{index}].{name}: must be a string", field=f"documents[{index}].{name}")
        texts.append(part)
    return "\n".join(texts)


def _render(version: str, request_id: str, top_n: int | None, texts: list[str] | None, result: InferResult) -> Reply:
    scores = result.outputs["score"]
    lines: list[dict[str, object]] = []
    for place in best_first(scores)[:top_n]:
        line: dict[str, object] = {"index": place, "relevance_score": scores[place].item()}
        if texts is not None:
            line["document"] = {"text": texts[place]}
        lines.append(line)
    body = {
        "id": request_id,
        "object": "list",
        "model": result.model,
        "results": lines,
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"search_units": -(-len(scores) // _SEARCH_UNIT)},
        },
        "usage": {"prompt_tokens": result.usage.n_tokens, "total_tokens": result.usage.n_tokens},
    }
    return Reply(dump(body))
