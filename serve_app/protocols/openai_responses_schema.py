"""The bodies of OpenAI's responses API, as they are checked and as the OpenAPI document shows them.

Read by `openai_responses` and, through `ENDPOINTS`, by `openapi`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from serve_app.protocols.json_body import Wire

_UNSERVED: Any = Annotated[Any, WithJsonSchema({"description": "not supported: leave it out"})]


class InputText(Wire):
    """One text of an input message."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Wire):
    """One turn of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText]
    id: str | None = None
    status: str | None = None

    def plain(self) -> dict[str, str]:
        """Return it as chat templates read it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class PlainFormat(Wire):
    """Text is the only form of an answer."""

    type: Literal["text"]


class TextOptions(Wire):
    """How the text must look."""

    format: PlainFormat | None = None


class ResponsesRequest(Wire):
    """What to answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "smollm2", "input": "Say hello."}]})
    unserved: ClassVar[tuple[str, ...]] = (
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "previous_response_id",
        "conversation",
        "reasoning",
        "background",
        "store",
        "include",
        "prompt",
        "top_logprobs",
        "max_tool_calls",
    )

    model: str = Field(min_length=1)
    input: str | list[InputMessage] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    truncation: Literal["disabled"] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    tools: _UNSERVED = None
    tool_choice: _UNSERVED = None
    parallel_tool_calls: _UNSERVED = None
    previous_response_id: _UNSERVED = None
    conversation: _UNSERVED = None
    reasoning: _UNSERVED = None
    background: _UNSERVED = None
    store: _UNSERVED = None
    include: _UNSERVED = None
    prompt: _UNSERVED = None
    top_logprobs: _UNSERVED = None
    max_tool_calls: _UNSERVED = None


class ResponsesUsage(Wire):
    """Tokens read and generated."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens_details: dict[str, int]


class ResponsesResponse(Wire):
    """The answer: one message with one text."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponsesUsage | None
