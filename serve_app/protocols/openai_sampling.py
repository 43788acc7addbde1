"""What OpenAI's generating endpoints share: sampling fields, refusal of what is not served, usage, log probabilities.

Used by `openai_chat`, `openai_completions` and `openai_responses`. `top_k`, `repetition_penalty` and `ignore_eos` are
ours (and vLLM's); clients send them as extra fields.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import orjson
from pydantic import Field, JsonValue

from deployments.chunks import Chunk
from deployments.errors import InvalidInput, ServeError
from deployments.types import InferResult, ModelStatus, Task, Usage
from serve_app.protocols.json_body import Wire, dump
from serve_app.protocols.openai_errors import envelope
from serve_app.protocols.types import EVENTS, Models

DONE = b"data: [DONE]\n\n"


class StreamOptions(Wire):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Generating(Wire):
    """Fields of a request for text. `unserved` are known to the API and refused here, whatever they say but a no."""

    unserved: ClassVar[tuple[str, ...]] = ()

    model: str = Field(min_length=1)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None

    def refuse_unserved(self) -> None:
        """Raise InvalidInput for a field that asks for what is not served."""
        refuse(self, self.unserved)
        if self.stream_options is not None and not self.stream:
            raise InvalidInput("stream_options: goes with stream=true only", field="stream_options")

    def params(self, **more: JsonValue) -> dict[str, JsonValue]:
        """Return the parameters of a pool request."""
        names = (
            "temperature",
            "top_p",
            "seed",
            "stop",
            "n",
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "top_k",
            "repetition_penalty",
            "ignore_eos",
        )
        given: dict[str, JsonValue] = {name: getattr(self, name) for name in names} | more
        return {name: value for name, value in given.items() if value is not None}


def refuse(body: Wire, names: Sequence[str]) -> None:
    """Raise InvalidInput for the first of these fields that asks for something."""
    for name in names:
        value = getattr(body, name)
        if value is not None and value is not False and value not in ([], {}):
            raise InvalidInput(f"{name}: is not supported; leave it out", field=name)


def generating_model(name: str, models: Models, *tasks: Task) -> ModelStatus:
    """Return the model of a request; it must do one of `tasks`."""
    status = models.resolve(name)
    if status.task not in tasks:
        wanted = " or ".join(tasks)
        raise InvalidInput(f"model: {status.name!r} does {status.task}; this needs a model for {wanted}", field="model")
    return status


def usage_json(usage: Usage) -> dict[str, object]:
    """Return what a request cost."""
    n_prompt = usage.n_tokens - usage.n_output_tokens
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": usage.n_output_tokens,
        "total_tokens": usage.n_tokens,
    }


def now() -> int:
    """Return the time of day in whole seconds."""
    return int(time.time())


def event(body: object) -> bytes:
    """Return one server-sent event."""
    return b"data: " + dump(body) + b"\n\n"


def rows(result: InferResult) -> list[tuple[str, str, list[dict[str, Any]] | None]]:
    """Return text, finish reason and log probabilities of each sequence."""
    texts, finishes = result.outputs["text"], result.outputs["finish_reason"]
    logprobs = result.outputs.get("logprobs")
    return [
        (text.decode(), finish.decode(), None if logprobs is None else orjson.loads(logprobs[index]))
        for index, (text, finish) in enumerate(zip(texts, finishes, strict=True))
    ]


class EventStream:
    """What the streams of chat and completions have in common: an envelope, a choice a chunk, usage, [DONE]."""

    media_type = EVENTS

    def __init__(self, head: Mapping[str, object], *, include_usage: bool) -> None:
        self._head = dict(head)
        self._include_usage = include_usage
        self._usage: Usage | None = None

    def chunks(self, ready: Sequence[Chunk]) -> bytes:
        """Return an event a sequence that has something new."""
        self._usage = ready[-1].usage or self._usage
        return b"".join(self._event([choice]) for chunk in ready for choice in self.choices(chunk))

    def choices(self, chunk: Chunk) -> list[dict[str, object]]:
        """Return the choices that say what a chunk says."""
        raise NotImplementedError

    def end(self) -> bytes:
        """Return the usage, if it was asked for, and the end mark."""
        if self._include_usage and self._usage is not None:
            return event({**self._head, "choices": [], "usage": usage_json(self._usage)}) + DONE
        return DONE

    def error(self, error: ServeError, request_id: str) -> bytes:
        """Return an event with the error."""
        return b"data: " + envelope(error, request_id) + b"\n\n"

    def _event(self, choices: list[dict[str, object]]) -> bytes:
        usage = {"usage": None} if self._include_usage else {}
        return event({**self._head, "choices": choices, **usage})
