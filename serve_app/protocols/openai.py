"""The OpenAI embeddings and models API, for the `openai` client libraries.

Called through the rows in `ENDPOINTS`. `dimensions` cuts each vector and normalises it again, for any embedding model:
whether the model was trained for that (Matryoshka) is not in its files, so the caller must know. When a model was
made is not known either: `created` is 0. Token ids are those of the model's own vocabulary, not of tiktoken.
"""

import base64
from functools import partial
from typing import Any

import numpy as np
from pydantic import JsonValue

from deployments.errors import InvalidInput, ModelUnavailable
from deployments.types import Array, InferRequest, InferResult, ModelStatus, Task, text_array
from serve_app.protocols.choosing import model_for
from serve_app.protocols.json_body import dump, parse_body
from serve_app.protocols.openai_errors import OPENAI
from serve_app.protocols.openai_schema import (
    EmbeddingsRequest,
    EmbeddingsResponse,
    OpenAIModel,
    OpenAIModelList,
)
from serve_app.protocols.text_inputs import read_texts_or_ids
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render, Reply

OWNER = "model-endpoint"


def parse_embeddings(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /v1/embeddings`."""
    body = parse_body(raw.body, EmbeddingsRequest)
    texts, are_ids = read_texts_or_ids(body.input, "input")
    name, _ = model_for(body.model, (Task.FEATURE_EXTRACTION,), models, "embeddings")
    params: dict[str, JsonValue] = {"token_ids": True} if are_ids else {}
    inputs = {"text": text_array(texts)}
    request = InferRequest(name, inputs, params=params, request_id=raw.request_id, user=body.user or "")
    return request, partial(_render, body.encoding_format, body.dimensions)


def list_models(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v1/models`: the default version under the model's name, others as `name:version`.

    `models` beside OpenAI's `data` is KServe's V1 list of the same path.
    """
    data = [_model(status, models) for status in models.all()]
    names = list(dict.fromkeys(status.name for status in models.all()))
    return Reply(dump({"object": "list", "data": data, "models": names}))


def retrieve_model(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v1/models/{id}`; `name` and `ready`, and 503 for one that cannot answer, are KServe's V1."""
    status = models.resolve(raw.path["id"])
    if not status.is_servable:
        why = status.reason or f"it is {status.state}"
        raise ModelUnavailable(f"model with name {status.name} is not ready: {why}", reason=why)
    return Reply(dump(_model(status, models)))


ROWS = (
    Endpoint(
        "POST",
        "/v1/embeddings",
        Action.INFER,
        "Embed texts",
        OPENAI,
        parse=parse_embeddings,
        request=EmbeddingsRequest,
        response=EmbeddingsResponse,
    ),
    Endpoint("GET", "/v1/models", Action.READ, "List models", OPENAI, answer=list_models, response=OpenAIModelList),
    Endpoint(
        "GET",
        "/v1/models/{id:path}",
        Action.READ,
        "Describe a model",
        OPENAI,
        answer=retrieve_model,
        response=OpenAIModel,
    ),
)


def cut(vectors: Array, dimensions: int | None, *, normalize: bool = True) -> Array:
    """Return vectors cut to `dimensions`, and scaled to length 1 again. Raises InvalidInput."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if dimensions > vectors.shape[1]:
        raise InvalidInput(
            f"dimensions: is {dimensions}, but the model gives {vectors.shape[1]}; ask for at most that",
            field="dimensions",
        )
    short = vectors[:, :dimensions]
    if not normalize:
        return short
    norms = np.linalg.norm(short, axis=1, keepdims=True)
    normalised: Array = np.divide(short, norms, out=np.zeros_like(short), where=norms > 0)
    return normalised


def _render(encoding_format: str, dimensions: int | None, result: InferResult) -> Reply:
    vectors = cut(np.asarray(result.outputs["embedding"], dtype="<f4"), dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": _encode(vector, encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": result.usage.n_tokens, "total_tokens": result.usage.n_tokens}
    return Reply(dump({"object": "list", "data": data, "model": result.model, "usage": usage}))


def _encode(vector: Array, encoding_format: str) -> Any:
    vector = np.ascontiguousarray(vector)
    return base64.b64encode(vector.tobytes()).decode() if encoding_format == "base64" else vector


def _model(status: ModelStatus, models: Models) -> dict[str, object]:
    is_default = models.versions(status.name)[-1] == status.version
    return {
        "id": status.name if is_default else status.key,
        "object": "model",
        "created": 0,
        "owned_by": OWNER,
        "task": status.task,
        "version": status.version,
        "name": status.name,
        "ready": status.is_servable,
    }
