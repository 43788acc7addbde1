"""OpenAI text completions, streamed and not, for the `openai` client libraries. Called through its rows."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema

from deployments.chunks import Chunk, logprob_json
from deployments.errors import InvalidInput
from deployments.types import InferRequest, InferResult, Task, text_array
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.openai_chat import ChatUsage
from serve_app.protocols.openai_errors import OPENAI
from serve_app.protocols.openai_sampling import EventStream, Generating, generating_model, now, rows, usage_json
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render, Reply, StreamRender

DEFAULT_TOKENS = 16  # the API's own default
MAX_PROMPTS = 256
_PROMPT: Any = {
    "title": "Prompt",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_PROMPTS},
    ],
}


class CompletionRequest(Generating):
    """Texts to continue."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 32}]}
    )
    unserved: ClassVar[tuple[str, ...]] = ("echo", "suffix")

    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=5)
    best_of: int | None = Field(default=None, ge=1, description="the same as n, if given")
    echo: bool | None = None
    suffix: str | None = None


class CompletionChoice(Wire):
    """One continuation."""

    text: str
    index: int
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, JsonValue] | None


class CompletionResponse(Wire):
    """The continuations of each prompt in turn; streamed, the same in pieces, then `data: [DONE]`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: ChatUsage


def parse_completion(raw: RawRequest, models: Models) -> tuple[InferRequest, Render | StreamRender]:
    """Read `POST /v1/completions`."""
    body = parse_body(raw.body, CompletionRequest)
    body.refuse_unserved()
    if body.best_of not in (None, body.n or 1):
        raise InvalidInput("best_of: is not supported beyond n; leave it out", field="best_of")
    generating_model(body.model, models, Task.TEXT_GENERATION, Task.TEXT2TEXT_GENERATION)
    params = body.params(max_tokens=body.max_tokens or DEFAULT_TOKENS, logprobs=body.logprobs)
    prompts = text_array(_prompts(body.prompt))
    inputs = {"text": prompts}
    request = InferRequest(body.model, inputs, params=params, request_id=raw.request_id, user=body.user or "")
    head = {"id": f"cmpl-{raw.request_id}", "object": "text_completion", "created": now(), "model": body.model}
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return request, CompletionStream(head, include_usage=usage)
    return request, partial(_render, head)


class CompletionStream(EventStream):
    """Continuations in pieces."""

    def __init__(self, head: dict[str, object], *, include_usage: bool) -> None:
        super().__init__(head, include_usage=include_usage)
        self._offsets: dict[int, int] = {}

    def choices(self, chunk: Chunk) -> list[dict[str, object]]:
        """Return the piece of a chunk, if it says anything."""
        if not (chunk.text or chunk.logprobs or chunk.finish):
            return []
        offset = self._offsets.get(chunk.index, 0)
        self._offsets[chunk.index] = offset + len(chunk.text)
        logprobs = _logprobs([logprob_json(token) for token in chunk.logprobs], offset) if chunk.logprobs else None
        return [{"text": chunk.text, "index": chunk.index, "logprobs": logprobs, "finish_reason": chunk.finish}]


def _prompts(value: JsonValue) -> list[str]:
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts:
        raise InvalidInput("prompt: must be a string or a list of strings, not empty", field="prompt")
    if len(prompts) > MAX_PROMPTS:
        raise InvalidInput(f"prompt: has {len(prompts)} texts, at most {MAX_PROMPTS}", field="prompt")
    checked: list[str] = []
    for index, prompt in enumerate(prompts):
        field = "prompt" if isinstance(value, str) else f"prompt[{index}]"
        if isinstance(prompt, int | list):
            raise InvalidInput(f"{field}: token ids are not taken; send the text as a string", field=field)
        if not isinstance(prompt, str) or not prompt:
            raise InvalidInput(f"{field}: must be a string, not empty", field=field)
        checked.append(prompt)
    return checked


def _render(head: dict[str, object], result: InferResult) -> Reply:
    choices = [
        {
            "text": text,
            "index": index,
            "finish_reason": finish,
            "logprobs": None if logprobs is None else _logprobs(logprobs, 0),
        }
        for index, (text, finish, logprobs) in enumerate(rows(result))
    ]
    return Reply(dump({**head, "choices": choices, "usage": usage_json(result.usage)}))


def _logprobs(tokens: list[dict[str, Any]], offset: int) -> Mapping[str, object]:
    """Return log probabilities as this older API has them: a list for each fact."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in tokens],
        "text_offset": offsets,
    }


ROWS = (
    Endpoint(
        "POST",
        "/v1/completions",
        Action.INFER,
        "Continue a text; streamed with stream=true",
        OPENAI,
        streams="asked",
        parse=parse_completion,
        request=CompletionRequest,
        response=CompletionResponse,
    ),
)
