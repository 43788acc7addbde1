"""OpenAI's responses API in its text form: input and instructions in, one message out, streamed and not.

Called through its rows. Nothing is stored: `store`, `previous_response_id`, tools and reasoning are refused.
"""

from collections.abc import Sequence
from functools import partial

import orjson

from deployments.chunks import Chunk, Finish
from deployments.errors import ServeError
from deployments.types import InferRequest, InferResult, Task, Usage, text_array
from serve_app.protocols.json_body import dump, parse_body
from serve_app.protocols.openai_errors import OPENAI
from serve_app.protocols.openai_responses_schema import ResponsesRequest, ResponsesResponse
from serve_app.protocols.openai_sampling import generating_model, now, refuse, rows
from serve_app.protocols.types import EVENTS, Action, Endpoint, Models, RawRequest, Render, Reply, StreamRender


def parse_response(raw: RawRequest, models: Models) -> tuple[InferRequest, Render | StreamRender]:
    """Read `POST /v1/responses`."""
    body = parse_body(raw.body, ResponsesRequest)
    refuse(body, body.unserved)
    generating_model(body.model, models, Task.TEXT_GENERATION)
    messages = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        messages += [message.plain() for message in body.input]
    wishes = {"max_tokens": body.max_output_tokens, "temperature": body.temperature, "top_p": body.top_p}
    params = {name: value for name, value in wishes.items() if value is not None}
    inputs = {"messages": text_array([orjson.dumps(messages).decode()])}
    user = body.safety_identifier or body.user or ""
    request = InferRequest(body.model, inputs, params=params, request_id=raw.request_id, user=user)
    head = _head(body, raw.request_id)
    return request, ResponseStream(head) if body.stream else partial(_render, head)


class ResponseStream:
    """A response in named events: created, the text as it comes, completed."""

    media_type = EVENTS

    def __init__(self, head: dict[str, object]) -> None:
        self._head = head
        self._n_events = 0
        self._texts: list[str] = []
        self._finish: Finish | None = None
        self._usage: Usage | None = None

    def chunks(self, ready: Sequence[Chunk]) -> bytes:
        """Return the events that open the answer, the first time, and one for what is new."""
        events = b"" if self._n_events else self._open()
        for chunk in ready:
            self._finish = chunk.finish or self._finish
            self._usage = chunk.usage or self._usage
            if chunk.text:
                self._texts.append(chunk.text)
                events += self._event("response.output_text.delta", **self._place, delta=chunk.text, logprobs=[])
        return events

    def end(self) -> bytes:
        """Return the events that close the answer."""
        text = "".join(self._texts)
        item, part = _message(self._head, text, self._finish), _part(text)
        body = _body(self._head, text, self._finish, self._usage)
        return (
            self._event("response.output_text.done", **self._place, text=text, logprobs=[])
            + self._event("response.content_part.done", **self._place, part=part)
            + self._event("response.output_item.done", output_index=0, item=item)
            + self._event(f"response.{body['status']}", response=body)
        )

    def error(self, error: ServeError, request_id: str) -> bytes:
        """Return the event of an answer that broke off."""
        failure = {"code": "server_error", "message": error.message}
        body = {**_body(self._head, "".join(self._texts), None, None), "status": "failed", "error": failure}
        return self._event("response.failed", response=body)

    @property
    def _place(self) -> dict[str, object]:
        return {"item_id": _item_id(self._head), "output_index": 0, "content_index": 0}

    def _open(self) -> bytes:
        begun = {**self._head, "status": "in_progress", "output": [], "usage": None}
        item = {**_message(self._head, "", None), "status": "in_progress", "content": []}
        return (
            self._event("response.created", response=begun)
            + self._event("response.in_progress", response=begun)
            + self._event("response.output_item.added", output_index=0, item=item)
            + self._event("response.content_part.added", **self._place, part=_part(""))
        )

    def _event(self, kind: str, **fields: object) -> bytes:
        body = {"type": kind, "sequence_number": self._n_events, **fields}
        self._n_events += 1
        return f"event: {kind}\ndata: ".encode() + dump(body) + b"\n\n"


def _head(body: ResponsesRequest, request_id: str) -> dict[str, object]:
    return {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": now(),
        "model": body.model,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": body.top_p,
        "truncation": "disabled",
    }


def _body(head: dict[str, object], text: str, finish: str | None, usage: Usage | None) -> dict[str, object]:
    is_cut = finish == Finish.LENGTH
    return {
        **head,
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": [_message(head, text, finish)],
        "usage": None if usage is None else _usage(usage),
    }


def _message(head: dict[str, object], text: str, finish: str | None) -> dict[str, object]:
    status = "incomplete" if finish == Finish.LENGTH else "completed"
    return {"type": "message", "id": _item_id(head), "status": status, "role": "assistant", "content": [_part(text)]}


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item_id(head: dict[str, object]) -> str:
    return f"msg_{str(head['id']).removeprefix('resp_')}"


def _usage(usage: Usage) -> dict[str, object]:
    return {
        "input_tokens": usage.n_tokens - usage.n_output_tokens,
        "output_tokens": usage.n_output_tokens,
        "total_tokens": usage.n_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _render(head: dict[str, object], result: InferResult) -> Reply:
    ((text, finish, _),) = rows(result)
    return Reply(dump(_body(head, text, finish, result.usage)))


ROWS = (
    Endpoint(
        "POST",
        "/v1/responses",
        Action.INFER,
        "Answer an input; streamed with stream=true",
        OPENAI,
        streams="asked",
        parse=parse_response,
        request=ResponsesRequest,
        response=ResponsesResponse,
    ),
)
