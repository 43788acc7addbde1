"""The OpenAI embeddings and models API, for the `openai` client libraries.

Called through the rows in `ENDPOINTS`. `dimensions` cuts each vector and normalises it again, for any embedding model:
whether the model was trained for that (Matryoshka) is not in its files, so the caller must know. When a model was
made is not known either: `created` is 0.
"""

import base64
from functools import partial
from typing import Any

import numpy as np
from pydantic import JsonValue

from deployments.errors import InvalidInput
from deployments.types import Array, InferRequest, InferResult, ModelStatus, Task, text_array
from serve_app.protocols.json_body import dump, parse_body
from serve_app.protocols.openai_errors import OPENAI
from serve_app.protocols.openai_schema import (
    MAX_INPUTS,
    EmbeddingsRequest,
    EmbeddingsResponse,
    OpenAIModel,
    OpenAIModelList,
)
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render, Reply

OWNER = "model-endpoint"


def parse_embeddings(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /v1/embeddings`."""
    body = parse_body(raw.body, EmbeddingsRequest)
    texts = _texts(body.input)
    status = models.resolve(body.model)
    if status.task is not Task.FEATURE_EXTRACTION:
        raise InvalidInput(
            f"model: {status.name!r} does {status.task}; embeddings need a model for {Task.FEATURE_EXTRACTION}",
            field="model",
        )
    inputs = {"text": text_array(texts)}
    request = InferRequest(body.model, inputs, request_id=raw.request_id, user=body.user or "")
    return request, partial(_render, body.encoding_format, body.dimensions)


def list_models(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v1/models`: the default version under the model's name, others as `name:version`."""
    data = [_model(status, models) for status in models.all()]
    return Reply(dump({"object": "list", "data": data}))


def retrieve_model(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v1/models/{id}`."""
    return Reply(dump(_model(models.resolve(raw.path["id"]), models)))


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


def _texts(value: JsonValue) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise InvalidInput("input: must be a string or a list of strings, not empty", field="input")
    if len(texts) > MAX_INPUTS:
        raise InvalidInput(f"input: has {len(texts)} texts, at most {MAX_INPUTS}", field="input")
    checked: list[str] = []
    for index, text in enumerate(texts):
        field = "input" if isinstance(value, str) else f"input[{index}]"
        if isinstance(text, int | list):
            raise InvalidInput(f"{field}: token ids are not taken; send the text as a string", field=field)
        if not isinstance(text, str):
            raise InvalidInput(f"{field}: must be a string", field=field)
        if not text:
            raise InvalidInput(f"{field}: must not be an empty string", field=field)
        checked.append(text)
    return checked


def _render(encoding_format: str, dimensions: int | None, result: InferResult) -> Reply:
    vectors = _cut(np.asarray(result.outputs["embedding"], dtype="<f4"), dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": _encode(vector, encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": result.usage.n_tokens, "total_tokens": result.usage.n_tokens}
    return Reply(dump({"object": "list", "data": data, "model": result.model, "usage": usage}))


def _cut(vectors: Array, dimensions: int | None) -> Array:
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if dimensions > vectors.shape[1]:
        raise InvalidInput(
            f"dimensions: is {dimensions}, but the model gives {vectors.shape[1]}; ask for at most that",
            field="dimensions",
        )
    short = vectors[:, :dimensions]
    norms = np.linalg.norm(short, axis=1, keepdims=True)
    normalised: Array = np.divide(short, norms, out=np.zeros_like(short), where=norms > 0)
    return normalised


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
        "ready": status.is_servable,
    }
