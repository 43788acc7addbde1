"""The bodies of Text Embeddings Inference's routes, as they are checked and as the OpenAPI document shows them.

Read by `tei` and, through `ENDPOINTS`, by `openapi`.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, RootModel, WithJsonSchema

from serve_app.protocols.classify import Texts
from serve_app.protocols.json_body import Wire
from serve_app.protocols.rerank import RerankRequest, RerankResponse

_PAIRS: Any = {"anyOf": [{"type": "string"}, {"type": "array", "items": {}, "minItems": 1}]}


class _Common(Wire):
    model: str | None = Field(default=None, description="ours: may be left out where one model here does this")
    truncate: bool | None = Field(default=None, description="cut long texts instead of refusing them")
    truncation_direction: Literal["right", "Right"] = "right"


class EmbedRequest(_Common):
    """Texts to embed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "minilm", "inputs": ["a cat", "a dog"]}]})

    inputs: Texts
    normalize: bool = True
    dimensions: int | None = Field(default=None, ge=1)
    prompt_name: None = Field(default=None, description="prompts are part of the model's files here")


class PredictTexts(_Common):
    """A text, a pair of texts, or a list of `[text]` and `[text, pair]`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "mood", "inputs": [["what a day"]]}]})

    inputs: Annotated[JsonValue, WithJsonSchema(_PAIRS)]
    raw_scores: bool = False


class TeiRerankRequest(_Common):
    """Texts to be put in order."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "rank", "query": "a pet", "texts": ["a cat", "a stock price"]}]}
    )

    query: str = Field(min_length=1)
    texts: Annotated[list[str], Field(min_length=1, max_length=2048)]
    raw_scores: bool = False
    return_text: bool = False


class RankingRequest(RootModel[TeiRerankRequest | RerankRequest]):
    """Texts as TEI's clients send them, or documents as Jina's and vLLM's do."""

    model_config = TeiRerankRequest.model_config | ConfigDict(extra=None)


class SimilarityInputs(Wire):
    """One sentence and those it is compared with."""

    source_sentence: str = Field(min_length=1)
    sentences: Annotated[list[str], Field(min_length=1, max_length=2047)]


class SimilarityParameters(Wire):
    """How."""

    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] = "right"
    prompt_name: None = None


class SimilarityRequest(Wire):
    """Sentences to be compared."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "minilm", "inputs": {"source_sentence": "a cat", "sentences": ["a dog", "a bond"]}}]
        }
    )

    model: str | None = None
    inputs: SimilarityInputs
    parameters: SimilarityParameters = SimilarityParameters()


class Vectors(RootModel[list[list[float | None]]]):
    """A vector a text."""


class Prediction(Wire):
    """One class."""

    score: float | None
    label: str


class Predictions(RootModel[list[Prediction] | list[list[Prediction]]]):
    """The classes of a text, or of each text of a batch, the best first."""


class Rank(Wire):
    """One text by its place in the request."""

    index: int
    score: float | None
    text: str | None = None


class Ranks(RootModel[list[Rank] | RerankResponse]):
    """The texts, the best first."""


class Similarities(RootModel[list[float | None]]):
    """A cosine a sentence."""


class Info(Wire):
    """What is served, as TEI tells it."""

    model_id: str
    model_dtype: str | None
    served_model_name: str
    model_type: dict[str, Any]
    max_client_batch_size: int
    auto_truncate: bool
    version: str


class TeiError(Wire):
    """An error of TEI."""

    error: str
    error_type: str
    code: str
    request_id: str
