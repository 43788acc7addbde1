"""The bodies of the OpenAI embeddings and models API, as they are checked and as the OpenAPI document shows them.

Read by `openai` and, through `ENDPOINTS`, by `openapi`.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from serve_app.protocols.json_body import Wire
from serve_app.protocols.text_inputs import TextsOrIds

_EMBEDDING: Any = {
    "title": "Embedding",
    "anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string", "contentEncoding": "base64"}],
}


class EmbeddingsRequest(Wire):
    """Texts to embed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "minilm", "input": ["The cat sits outside", "A man plays guitar"]}]}
    )

    model: str = Field(min_length=1)
    input: TextsOrIds
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, description="cut each vector to this length and normalise it")
    user: str | None = None


class Embedding(Wire):
    """One vector; as base64 it is little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: Annotated[Any, WithJsonSchema(_EMBEDDING)]


class EmbeddingsUsage(Wire):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(Wire):
    """One vector a text, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class OpenAIModel(Wire):
    """One model; `name` and `ready` are KServe's, `task` and `version` ours."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    task: str
    version: str
    name: str
    ready: bool


class OpenAIModelList(Wire):
    """All models; `models` are their names, as KServe's V1 lists them."""

    object: Literal["list"]
    data: list[OpenAIModel]
    models: list[str]


class OpenAIErrorBody(Wire):
    """What went wrong, and in which parameter."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Wire):
    """An error of the OpenAI API."""

    error: OpenAIErrorBody
