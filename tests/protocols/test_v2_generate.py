"""Triton's generate and generate_stream, and the native door for generating models."""

import json

import httpx
import pytest
from edge_fakes import FakeGateway

from deployments.errors import EngineFailure, Overloaded

PATH = "/v2/models/smollm2"


async def test_generate(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    body = {"id": "7", "text_input": "hi", "parameters": {"max_tokens": 5, "stream": False}, "temperature": 0}
    answer = (await client.post(f"{PATH}/generate", json=body)).json()
    assert answer == {
        "id": "7",
        "model_name": "smollm2",
        "model_version": "1",
        "text_output": "Hello, world!",
        "finish_reason": "stop",
    }
    assert gateway.requests[0].params == {"max_tokens": 5, "temperature": 0}
    assert gateway.requests[0].inputs["text"].tolist() == [b"hi"]


async def test_generate_stream(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    answer = await client.post(f"{PATH}/versions/1/generate_stream", json={"text_input": "hi"})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert [event["text_output"] for event in events] == ["Hello", ", wor", "ld!"]
    assert events[-1]["finish_reason"] == "stop"
    gateway.breaks_off = EngineFailure("broken")
    late = await client.post(f"{PATH}/generate_stream", json={"text_input": "hi"})
    assert late.status_code == 200
    assert json.loads(late.text.split("\n\n")[-2].removeprefix("data: "))["error"] == "broken"
    gateway.error = Overloaded("full", retry_after_s=1.0)
    early = await client.post(f"{PATH}/generate_stream", json={"text_input": "hi"})
    assert (early.status_code, early.headers["retry-after"]) == (429, "1")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/minilm/generate", {"text_input": "hi"}),
        (f"{PATH}/generate", {"text_input": ""}),
        (f"{PATH}/generate", {}),
        (f"{PATH}/generate", {"text_input": "hi", "parameters": {"triton_x": 1}}),
        (f"{PATH}/generate", {"text_input": "hi", "parameters": {"exclude_input_in_output": False}}),
        (f"{PATH}/generate", {"text_input": "hi", "n": 2}),
    ],
)
async def test_generate_refuses(client: httpx.AsyncClient, path: str, body: dict[str, object]) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert "error" in answer.json()


async def test_native_predict_takes_prompts_and_conversations(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    answer = await client.post("/v1/predict", json={"model": "smollm2", "inputs": ["a", "b"], "parameters": {"n": 1}})
    outputs = answer.json()["outputs"]
    assert outputs == [{"text": "Hello, world!", "finish_reason": "stop", "n_tokens": 4}] * 2
    messages = [{"role": "user", "content": "hi"}]
    answer = await client.post("/v1/predict", json={"model": "smollm2", "inputs": {"messages": messages}})
    assert answer.status_code == 200
    assert gateway.requests[-1].inputs["messages"].tolist() == [b'[{"role":"user","content":"hi"}]']


async def test_v2_infer_takes_and_gives_bytes(client: httpx.AsyncClient) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
    answer = await client.post(f"{PATH}/infer", json={"inputs": [tensor], "parameters": {"max_tokens": 4}})
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert outputs == {"text": ["Hello, world!"], "finish_reason": ["stop"], "n_tokens": [4]}
