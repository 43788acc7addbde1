"""Triton's generate extension: a prompt in, text out, in one piece or streamed as server-sent events.

Called through its rows. Fields beside `text_input` and `parameters` count as parameters, as in Triton.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import ConfigDict, Field, JsonValue

from deployments.chunks import GENERATIVE_TASKS, Chunk
from deployments.errors import InvalidInput, ServeError
from deployments.types import InferRequest, InferResult, text_array
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.types import EVENTS, Action, Endpoint, Models, RawRequest, Render, Reply, StreamRender
from serve_app.protocols.v2_errors import MODEL, V2, VERSION, envelope


class GenerateBody(Wire):
    """A prompt and how to continue it; other fields are parameters too."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"text_input": "Once upon a time", "parameters": {"max_tokens": 16}}]},
    )

    id: str | None = None
    text_input: str = Field(min_length=1)
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class GenerateResponse(Wire):
    """The text; streamed, an event a piece."""

    id: str | None = None
    model_name: str
    model_version: str
    text_output: str
    finish_reason: str | None = None


def parse_generate(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST …/generate`."""
    request, head = _read(raw, models)
    return request, partial(_render, head)


def parse_stream(raw: RawRequest, models: Models) -> tuple[InferRequest, StreamRender]:
    """Read `POST …/generate_stream`."""
    request, head = _read(raw, models)
    return request, GenerateStream(head)


class GenerateStream:
    """A text in pieces; the last one says why it ended."""

    media_type = EVENTS

    def __init__(self, head: dict[str, object]) -> None:
        self._head = head

    def chunks(self, ready: Sequence[Chunk]) -> bytes:
        """Return an event a chunk that says anything."""
        return b"".join(_event(self._body(chunk)) for chunk in ready if chunk.text or chunk.finish)

    def end(self) -> bytes:
        """Return nothing: the protocol has no end mark."""
        return b""

    def error(self, error: ServeError, request_id: str) -> bytes:
        """Return an event with the error."""
        return b"data: " + envelope(error, request_id) + b"\n\n"

    def _body(self, chunk: Chunk) -> dict[str, object]:
        finish = {"finish_reason": chunk.finish} if chunk.finish else {}
        named = {"model_name": chunk.model, "model_version": chunk.version}
        return {**self._head, **named, "text_output": chunk.text, **finish}


def _read(raw: RawRequest, models: Models) -> tuple[InferRequest, dict[str, object]]:
    body = parse_body(raw.body, GenerateBody)
    name, version = raw.path["model"], raw.path.get("version")
    status = models.resolve(name, version)
    if status.task not in GENERATIVE_TASKS:
        raise InvalidInput(
            f"model {status.name!r} does {status.task}; generate needs one that generates", field="model"
        )
    params = _params({**body.parameters, **(body.model_extra or {})})
    inputs = {"text": text_array([body.text_input])}
    request = InferRequest(name, inputs, version, params, request_id=raw.request_id)
    return request, {} if body.id is None else {"id": body.id}


def _params(given: dict[str, Any]) -> dict[str, JsonValue]:
    """Return the model's own parameters, without those that Triton's backends know and that are so here anyway."""
    for key in given:
        if key.startswith("triton_"):
            raise InvalidInput(
                f"parameters.{key}: parameter keys starting with 'triton_' are reserved for Triton usage "
                "and should not be specified.",
                field=f"parameters.{key}",
            )
    params = dict(given)
    if params.pop("exclude_input_in_output", True) is not True:
        field = "parameters.exclude_input_in_output"
        raise InvalidInput(f"{field}: the prompt is never part of the output; leave it out", field=field)
    params.pop("stream", None)
    if params.get("n", 1) != 1:
        raise InvalidInput("parameters.n: this door gives one text; use /v1/completions for more", field="parameters.n")
    return params


def _render(head: dict[str, object], result: InferResult) -> Reply:
    text, finish = result.outputs["text"][0].decode(), result.outputs["finish_reason"][0].decode()
    named = {"model_name": result.model, "model_version": result.version}
    return Reply(dump({**head, **named, "text_output": text, "finish_reason": finish}))


def _event(body: dict[str, object]) -> bytes:
    return b"data: " + dump(body) + b"\n\n"


_generate = partial(
    Endpoint,
    "POST",
    action=Action.INFER,
    dialect=V2,
    request=GenerateBody,
    response=GenerateResponse,
    example_model="smollm2",
)
ROWS = (
    _generate(f"{MODEL}/generate", summary="Continue a text", parse=parse_generate),
    _generate(f"{VERSION}/generate", summary="Continue a text with one version", parse=parse_generate),
    _generate(f"{MODEL}/generate_stream", summary="Continue a text, streamed", parse=parse_stream, streams="always"),
    _generate(f"{VERSION}/generate_stream", summary="The same of one version", parse=parse_stream, streams="always"),
)
