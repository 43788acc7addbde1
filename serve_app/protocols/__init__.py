"""The table of all routes. A new endpoint is a codec file beside this one that ends in its rows, `ROWS`, named here.

Read by `serve_app.http`, which serves them, and by `openapi`, which describes them. A row with none of `parse`,
`answer`, `count` and `control` is answered by the gateway: `/metrics` alone. A trailing slash changes nothing.
"""

from dataclasses import replace
from functools import cache, partial

from serve_app.protocols import (
    classify,
    moderations,
    native,
    openai,
    openai_chat,
    openai_completions,
    openai_responses,
    rerank,
    service,
    tei,
    tei_info,
    tei_tokens,
    v1,
    v2,
    v2_absent,
    v2_config,
    v2_generate,
    v2_metadata,
    v2_repository,
    v2_statistics,
)
from serve_app.protocols.json_body import dump
from serve_app.protocols.openapi import document
from serve_app.protocols.openapi_model import model_document
from serve_app.protocols.types import Action, Dialect, Endpoint, Models, RawRequest, Reply
from serve_app.protocols.v2_errors import MODEL, V2, VERSION

__all__ = ["ENDPOINTS", "dialect_of"]


@cache
def _document() -> bytes:
    return dump(document(ENDPOINTS))


def _openapi(raw: RawRequest, models: Models) -> Reply:
    return Reply(_document())


def _model_openapi(raw: RawRequest, models: Models) -> Reply:
    return Reply(dump(model_document(ENDPOINTS, models.resolve(raw.path["model"], raw.path.get("version")))))


_describe = partial(Endpoint, "GET", action=Action.READ, dialect=V2, answer=_model_openapi)
_MODEL_OPENAPI = (
    _describe(f"{MODEL}/openapi.json", summary="A model's API as an OpenAPI document"),
    _describe(f"{VERSION}/openapi.json", summary="The API of one version of a model as an OpenAPI document"),
)
_OPENAPI = Endpoint(
    "GET", "/openapi.json", Action.OPEN, "This API as an OpenAPI document", service.SERVICE, answer=_openapi
)

_OPENAI_ROWS: tuple[Endpoint, ...] = (
    *openai_chat.ROWS,
    *openai_completions.ROWS,
    *openai_responses.ROWS,
    *moderations.ROWS,
    *openai.ROWS,
)

_TEI_ROWS: tuple[Endpoint, ...] = (*tei.ROWS, *tei_tokens.ROWS, *tei_info.ROWS)

ENDPOINTS: tuple[Endpoint, ...] = (
    *native.ROWS,
    *v1.ROWS,  # before OpenAI's: `/v1/models/{id:path}` would take `/v1/models/m:predict`
    *_OPENAI_ROWS,
    *(replace(row, path=f"/openai{row.path}") for row in _OPENAI_ROWS),  # where KServe has them
    *classify.ROWS,
    *rerank.ROWS,
    *_TEI_ROWS,
    *(replace(row, path=f"/tei/{{model}}{row.path}") for row in _TEI_ROWS),  # its clients name no model
    *v2.ROWS,
    *v2_generate.ROWS,
    *v2_statistics.ROWS,
    *v2_metadata.ROWS,
    *v2_config.ROWS,
    *v2_absent.ROWS,
    *v2_repository.ROWS,
    *service.ROWS,
    *_MODEL_OPENAPI,
    _OPENAPI,
)

_DIALECTS: dict[str, Dialect] = {prefix: row.dialect for row in ENDPOINTS for prefix in row.dialect.prefixes}


def dialect_of(path: str) -> Dialect:
    """Return the dialect of the protocol a path belongs to, whether or not there is such a path."""
    fitting = [prefix for prefix in _DIALECTS if path == prefix or path.startswith(f"{prefix}/")]
    return _DIALECTS[max(fitting, key=len)] if fitting else native.NATIVE
