"""OpenAI chat completions, streamed and not, for the `openai` client libraries.

Called through its rows. The model's own chat template turns messages into a prompt, in the pool.
"""

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema

from deployments.chunks import Chunk, logprob_json
from deployments.errors import InvalidInput
from deployments.types import InferRequest, InferResult, Task, text_array
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.openai_errors import OPENAI
from serve_app.protocols.openai_sampling import EventStream, Generating, generating_model, now, rows, usage_json
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render, Reply, StreamRender

_MAX_TOP_LOGPROBS = 20


class TextPart(Wire):
    """One text of a message's content."""

    type: Literal["text"]
    text: str


class Message(Wire):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = Field(default=None, description="handed to the model's chat template")
    refusal: None = None

    def plain(self) -> dict[str, str]:
        """Return it as chat templates read it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        named = {} if self.name is None else {"name": self.name}
        return {"role": "system" if self.role == "developer" else self.role, "content": content, **named}


class ResponseFormat(Wire):
    """How the answer must look: text is the only form."""

    type: Literal["text"]


_UNSERVED: Any = Annotated[Any, WithJsonSchema({"description": "not supported: leave it out"})]


class ChatRequest(Generating):
    """A conversation to continue."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}]}]}
    )
    unserved: ClassVar[tuple[str, ...]] = (
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "modalities",
        "audio",
        "prediction",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
        "store",
    )

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=_MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = Field(default=None, description="accepted, not kept")
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    tools: _UNSERVED = None
    tool_choice: _UNSERVED = None
    parallel_tool_calls: _UNSERVED = None
    functions: _UNSERVED = None
    function_call: _UNSERVED = None
    modalities: _UNSERVED = None
    audio: _UNSERVED = None
    prediction: _UNSERVED = None
    reasoning_effort: _UNSERVED = None
    verbosity: _UNSERVED = None
    web_search_options: _UNSERVED = None
    store: _UNSERVED = None


class ChatUsage(Wire):
    """Tokens read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(Wire):
    """The model's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Wire):
    """One of `n` answers."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, JsonValue] | None


class ChatResponse(Wire):
    """The answer; streamed, the same in pieces (`chat.completion.chunk`), then `data: [DONE]`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


def parse_chat(raw: RawRequest, models: Models) -> tuple[InferRequest, Render | StreamRender]:
    """Read `POST /v1/chat/completions`."""
    body = parse_body(raw.body, ChatRequest)
    body.refuse_unserved()
    generating_model(body.model, models, Task.TEXT_GENERATION)
    conversation = orjson.dumps([message.plain() for message in body.messages]).decode()
    params = body.params(max_tokens=_max_tokens(body), logprobs=_logprobs(body))
    request = InferRequest(
        body.model,
        {"messages": text_array([conversation])},
        params=params,
        request_id=raw.request_id,
        user=body.safety_identifier or body.user or "",
    )
    head = {"id": f"chatcmpl-{raw.request_id}", "created": now(), "model": body.model}
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return request, ChatStream({**head, "object": "chat.completion.chunk"}, include_usage=usage)
    return request, partial(_render, head)


class ChatStream(EventStream):
    """A chat answer in pieces: first the role, then the text, at last the finish reason."""

    def __init__(self, head: dict[str, object], *, include_usage: bool) -> None:
        super().__init__(head, include_usage=include_usage)
        self._begun: set[int] = set()

    def choices(self, chunk: Chunk) -> list[dict[str, object]]:
        """Return the deltas of a chunk."""
        choices = []
        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            choices.append(_choice(chunk.index, {"role": "assistant", "content": "", "refusal": None}))
        if chunk.text or chunk.logprobs:
            choices.append(_choice(chunk.index, {"content": chunk.text}, _logprobs_json(chunk)))
        if chunk.finish is not None:
            choices.append(_choice(chunk.index, {}, None, chunk.finish))
        return choices


def _choice(
    index: int, delta: dict[str, object], logprobs: dict[str, object] | None = None, finish: str | None = None
) -> dict[str, object]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _logprobs_json(chunk: Chunk) -> dict[str, object] | None:
    return {"content": list(map(logprob_json, chunk.logprobs)), "refusal": None} if chunk.logprobs else None


def _max_tokens(body: ChatRequest) -> int | None:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidInput("max_tokens: is the old name of max_completion_tokens; give one", field="max_tokens")
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidInput("top_logprobs: goes with logprobs=true only", field="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _render(head: dict[str, object], result: InferResult) -> Reply:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": finish,
            "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
        }
        for index, (text, finish, logprobs) in enumerate(rows(result))
    ]
    return Reply(dump({**head, "object": "chat.completion", "choices": choices, "usage": usage_json(result.usage)}))


ROWS = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        Action.INFER,
        "Continue a conversation; streamed with stream=true",
        OPENAI,
        streams="asked",
        parse=parse_chat,
        request=ChatRequest,
        response=ChatResponse,
    ),
)
