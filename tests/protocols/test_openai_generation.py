"""Chat, completions and responses, asked by the `openai` client library over the real ASGI app."""

from typing import Any

import httpx
import openai
import pytest
from edge_fakes import FakeGateway
from starlette.applications import Starlette

from deployments.errors import DeadlineExceeded, ModelUnavailable

HELLO: Any = [{"role": "user", "content": "Hi!"}]
BRIEF: Any = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief"}]


@pytest.fixture
async def api(asgi: Starlette) -> openai.AsyncOpenAI:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://endpoint")
    return openai.AsyncOpenAI(base_url="http://endpoint/v1", api_key="none", http_client=http, max_retries=0)


async def test_chat(api: openai.AsyncOpenAI, gateway: FakeGateway) -> None:
    answer = await api.chat.completions.create(
        model="smollm2",
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief"}]},
            {"role": "user", "content": "Hi!", "name": "ada"},
        ],
        temperature=0,
        max_completion_tokens=9,
        seed=3,
        stop="\n",
        n=2,
        extra_body={"top_k": 5},
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello, world!"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 2
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 8, 15)
    (request,) = gateway.requests
    messages = b'[{"role":"system","content":"Be brief"},{"role":"user","content":"Hi!","name":"ada"}]'
    assert request.inputs["messages"].tolist() == [messages]
    assert request.params == {"temperature": 0, "max_tokens": 9, "seed": 3, "stop": "\n", "n": 2, "top_k": 5}


async def test_chat_streams_role_text_and_reason_and_usage_when_asked(api: openai.AsyncOpenAI) -> None:
    stream = await api.chat.completions.create(
        model="smollm2",
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, world!"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert len({chunk.id for chunk in chunks}) == 1
    logprobs = chunks[1].choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert (logprobs.content[0].token, logprobs.content[0].bytes) == ("Hello", list(b"Hello"))
    assert logprobs.content[0].top_logprobs[1].bytes == [0xC3]


async def test_chat_logprobs_unstreamed(api: openai.AsyncOpenAI) -> None:
    answer = await api.chat.completions.create(model="smollm2", messages=HELLO, logprobs=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].logprob == -0.5


async def test_completions(api: openai.AsyncOpenAI, gateway: FakeGateway) -> None:
    answer = await api.completions.create(model="smollm2", prompt=["a", "b"], logprobs=1)
    assert [choice.text for choice in answer.choices] == ["Hello, world!"] * 2
    assert answer.choices[1].index == 1
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["Hello"]
    assert gateway.requests[0].params == {"max_tokens": 16, "logprobs": 1}
    assert gateway.requests[0].inputs["text"].tolist() == [b"a", b"b"]
    stream = await api.completions.create(model="titler", prompt="a", stream=True)
    pieces = [chunk.choices[0] async for chunk in stream]
    assert "".join(piece.text for piece in pieces) == "Hello, world!"
    assert pieces[-1].finish_reason == "stop"


async def test_an_early_failure_has_its_own_status_also_when_streaming(
    api: openai.AsyncOpenAI, gateway: FakeGateway
) -> None:
    gateway.error = ModelUnavailable("no room", retry_after_s=2.0)
    with pytest.raises(openai.InternalServerError) as caught:
        await api.chat.completions.create(model="smollm2", messages=HELLO, stream=True)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "2"
    assert gateway.recorded[-1].status == 503


async def test_a_late_failure_is_an_error_event(api: openai.AsyncOpenAI, gateway: FakeGateway) -> None:
    gateway.breaks_off = DeadlineExceeded("too slow")
    stream = await api.chat.completions.create(model="smollm2", messages=HELLO, stream=True)
    assert [(await anext(stream)).choices[0].delta.content for _ in range(2)] == ["", "Hello"]
    with pytest.raises(openai.APIError, match="too slow"):
        await anext(stream)
    assert (gateway.recorded[-1].status, gateway.recorded[-1].code) == (200, "deadline_exceeded")
    gateway.breaks_off = RuntimeError("a secret")
    stream = await api.chat.completions.create(model="smollm2", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="internal error"):
        _ = [chunk async for chunk in stream]
    assert gateway.n_streams_closed == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"temperatur": 1}, "temperatur"),
        ({"model": "minilm"}, "model"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await client.post("/v1/chat/completions", json={"model": "smollm2", "messages": HELLO, **body})
    assert answer.status_code == 400
    assert str(answer.json()["error"]["param"]).startswith(field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": [[1, 2]]}, "prompt[0]"),
        ({"prompt": []}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
    ],
)
async def test_completions_refuse_by_name(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    answer = await client.post("/v1/completions", json={"model": "smollm2", "prompt": "a", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


async def test_responses(api: openai.AsyncOpenAI, gateway: FakeGateway) -> None:
    answer = await api.responses.create(model="smollm2", input="Hi!", instructions="Be brief", max_output_tokens=9)
    assert answer.output_text == "Hello, world!"
    assert answer.status == "completed"
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 4)
    messages = b'[{"role":"system","content":"Be brief"},{"role":"user","content":"Hi!"}]'
    assert gateway.requests[0].inputs["messages"].tolist() == [messages]
    assert gateway.requests[0].params == {"max_tokens": 9}


async def test_responses_stream(api: openai.AsyncOpenAI, gateway: FakeGateway) -> None:
    conversation: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Hi!"}]}]
    stream = await api.responses.create(model="smollm2", input=conversation, stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events][:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello, world!"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "Hello, world!"
    gateway.breaks_off = DeadlineExceeded("too slow")
    stream = await api.responses.create(model="smollm2", input="Hi!", stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.error.message == "too slow"


async def test_responses_refuse_by_name(client: httpx.AsyncClient) -> None:
    for more, field in (({"tools": [{"type": "web_search"}]}, "tools"), ({"previous_response_id": "x"}, "previous")):
        answer = await client.post("/v1/responses", json={"model": "smollm2", "input": "Hi!", **more})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith(field)
