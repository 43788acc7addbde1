"""The OpenAPI 3.1 document, made from the route table and its pydantic models.

Called once, by the table's own `/openapi.json` row.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app import __version__
from serve_app.protocols.types import EVENTS, JSON, Action, Endpoint

_ERRORS = {  # of every route
    400: "the request is wrong; the message names the field",
    404: "no such path, model or version",
    405: "wrong method",
    431: "too many headers, or too long ones",
    500: "the model or the server failed",
    503: "not ready, or the model cannot be loaded or reached now",
}
_KEY_ERRORS = {401: "a key or token is needed, or the one shown is not valid", 403: "its scopes do not allow this"}
_BODY_ERRORS = {
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the Content-Encoding is not understood",
}
_INFER_ERRORS = {
    429: "too much is waiting, or a limit is used up; Retry-After says when to come back",
    504: "the deadline passed",
}
_OTHERS = {  # where a dialect has other statuses
    422: "the request is wrong; the message names the field",
    424: "the model failed, or cannot do this",
}
_NOT_SERVED = {501: "this part of the protocol is not served; the message says what is instead"}
_RETRY_AFTER = {"Retry-After": "seconds, where the wait is known"}
_INFER_HEADERS = {
    "Server-Timing": "milliseconds of each phase and in all",
    "X-Cache": "hit, joined, partial, miss or bypass; for models whose answers are kept",
    "X-Cache-Items": "items that were not computed for this request, of all",
    "X-Arm": "the model that an alias with several targets chose",
    "X-Fallback": "who answered because the model asked could not: a model, or static",
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, or an OAuth2 access token"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_EXAMPLES = {"version": "1", "id": "minilm", "region": "any", "repository": "any"}
_MEDIA = {"/metrics": "text/plain", "/docs": "text/html", "/openapi.json": JSON}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the document for these rows."""
    used = {model for row in endpoints for model in (row.request, row.response, row.dialect.error) if model}
    ordered = sorted(used, key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for row in endpoints:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Model Endpoint",
            "version": __version__,
            "summary": "Many PyTorch and transformers models behind one typed API.",
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(row.dialect.tag for row in endpoints)],
        "paths": paths,
        "components": {"schemas": definitions["$defs"], "securitySchemes": _SCHEMES},
    }


def _operation(row: Endpoint, path: str) -> dict[str, Any]:
    words = re.findall(r"\w+", f"{row.method.lower()} {path}")
    operation: dict[str, Any] = {
        "operationId": "_".join(words),
        "summary": row.summary,
        "tags": [row.dialect.tag],
        "responses": _responses(row, path),
    }
    if row.action is not Action.OPEN:
        operation["security"] = [{name: []} for name in _SCHEMES] + [{}]  # the last: where none is configured
    names = re.findall(r"\{(\w+)\}", path)
    if names:
        operation["parameters"] = [_parameter(name, row) for name in names]
    if row.request:
        operation["requestBody"] = {"required": row.parse is not None, "content": {JSON: _content(row.request)}}
    return operation


def _parameter(name: str, row: Endpoint) -> dict[str, Any]:
    example = row.example_model if name == "model" else _EXAMPLES[name]
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "example": example}


def _content(model: type[BaseModel]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _ref(model)}
    extra = model.model_config.get("json_schema_extra")
    if isinstance(extra, dict) and isinstance(extra.get("examples"), list):
        content["example"] = extra["examples"][0]  # type: ignore[index]
    return content


def _responses(row: Endpoint, path: str) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if row.is_served:
        content = {JSON: {"schema": _ref(row.response)}} if row.response else {_MEDIA.get(path, JSON): {}}
        if row.streams != "never":
            content |= {EVENTS: {}}  # OpenAPI 3.1 has no schema of an event
        if row.streams == "always":
            del content[JSON]
        responses["200"] = {"description": "OK", "content": content}
    if row.parse:
        responses["200"]["headers"] = _headers(_INFER_HEADERS)
    for status, text in sorted(_errors(row).items()):
        responses[str(status)] = {"description": text, "content": {JSON: {"schema": _ref(row.dialect.error)}}}
        if status in (429, 503):
            responses[str(status)]["headers"] = _headers(_RETRY_AFTER, "integer")
    return responses


def _errors(row: Endpoint) -> dict[int, str]:
    """Return the error statuses a row may answer with."""
    return {
        **_ERRORS,
        **(_KEY_ERRORS if row.action is not Action.OPEN else {}),
        **(_BODY_ERRORS if row.method == "POST" else {}),
        **(_INFER_ERRORS if row.parse else {}),
        **({} if row.is_served or "not_served" in row.dialect.statuses else _NOT_SERVED),
        **{status: _OTHERS[status] for status in row.dialect.statuses.values()},
    }


def _headers(texts: Mapping[str, str], kind: str = "string") -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": kind}} for name, text in texts.items()}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
