"""The bodies of Text Embeddings Inference's routes, as they are checked and as the OpenAPI document shows them.

Read by `tei` and, through `ENDPOINTS`, by `openapi`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, RootModel, WithJsonSchema

from serve_app.protocols.json_body import Wire
from serve_app.protocols.rerank import RerankRequest, RerankResponse
from serve_app.protocols.text_inputs import MAX_TEXTS, Texts, TextsOrIds

_IDS: Any = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_ID_ROWS: Any = {
    "anyOf": [{**_IDS, "minItems": 1}, {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_TEXTS}]
}
_PAIRS: Any = {"anyOf": [{"type": "string"}, {"type": "array", "items": {}, "minItems": 1}]}

_PROMPT = "one of the model's own prompts, put before each text"


def _strings(n_most: int) -> Any:
    return {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": n_most}


def _lower(given: object) -> object:
    return given.lower() if isinstance(given, str) else given


_Direction = Annotated[Literal["left", "right"], BeforeValidator(_lower)]  # TEI's own clients write Left and Right


class Truncates(Wire):
    """Whether long texts are cut, and on which side."""

    truncate: bool | None = Field(default=None, description="cut long texts instead of refusing them")
    truncation_direction: _Direction = Field(default="right", description="left keeps the end of a text")


class _Common(Truncates):
    model: str | None = Field(default=None, description="ours: may be left out where one model here does this")


class EmbedRequest(_Common):
    """Texts to embed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "minilm", "inputs": ["a cat", "a dog"]}]})

    inputs: TextsOrIds
    normalize: bool = True
    dimensions: int | None = Field(default=None, ge=1)
    prompt_name: str | None = Field(default=None, description=_PROMPT)


class EmbedAllRequest(_Common):
    """Texts whose tokens are to be embedded."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "minilm", "inputs": "a cat"}]})

    inputs: TextsOrIds
    prompt_name: str | None = Field(default=None, description=_PROMPT)


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
    texts: Annotated[list[str], WithJsonSchema(_strings(MAX_TEXTS)), Field(max_length=MAX_TEXTS)]
    raw_scores: bool = False
    return_text: bool = False


class RankingRequest(RootModel[TeiRerankRequest | RerankRequest]):
    """Texts as TEI's clients send them, or documents as Jina's and vLLM's do."""

    model_config = TeiRerankRequest.model_config | ConfigDict(extra=None)


class SimilarityInputs(Wire):
    """One sentence and those it is compared with."""

    source_sentence: str = Field(min_length=1)
    sentences: Annotated[list[str], WithJsonSchema(_strings(MAX_TEXTS - 1)), Field(max_length=MAX_TEXTS - 1)]


class SimilarityParameters(Truncates):
    """How."""

    prompt_name: str | None = Field(default=None, description=_PROMPT)


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


class TokenizeRequest(Wire):
    """Texts to be taken apart."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "minilm", "inputs": "a cat"}]})

    model: str | None = None
    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: str | None = Field(default=None, description=_PROMPT)


class DecodeRequest(Wire):
    """Token ids to be put together."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "minilm", "ids": [101, 1037, 4937, 102]}]})

    model: str | None = None
    ids: Annotated[JsonValue, WithJsonSchema(_ID_ROWS)]
    skip_special_tokens: bool = True


class Token(Wire):
    """One token; where it stands in the text, in characters."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TokenizedTexts(RootModel[list[list[Token]]]):
    """The tokens of each text."""


class DecodedTexts(RootModel[list[str]]):
    """A text a row of token ids."""


class TokenVectors(RootModel[list[list[list[float | None]]]]):
    """A vector a token, text by text."""


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
    """What is served, as TEI tells it; null is not known, or does not exist here."""

    model_id: str
    model_sha: str | None
    model_dtype: str | None
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int | None
    max_input_length: int | None
    max_batch_tokens: int | None
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None
