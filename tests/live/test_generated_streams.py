"""Streams over the live cluster: many models of one base at once, every door, clients that leave, deadlines, losses."""

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from language_models import ADAPTERS, LIMIT, folders, language_models, metric
from live_cluster import Live
from test_clients import client_python as client_python
from test_clients import run

MODELS = ("tiny", *ADAPTERS)
TIMEOUT = "x-request-timeout-seconds"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return folders(tmp_path_factory.mktemp("language-models"))


@pytest.fixture(scope="module")
def endpoint(cluster: Live, saved: dict[str, Path]) -> Live:
    cluster.deploy(language_models(saved))
    return cluster


@pytest.fixture
async def http(endpoint: Live) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=endpoint.http_url, timeout=120, trust_env=False, limits=limits) as opened:
        yield opened


def wish(prompt: str = "hello", n_tokens: int = 40, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True, **more}


async def events(http: httpx.AsyncClient, path: str, body: Any, **headers: str) -> AsyncIterator[dict[str, Any]]:
    """Yield what the events of a streamed answer say, but for the end mark."""
    async with http.stream("POST", path, json=body, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])


async def until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:  # noqa: ASYNC110 - another process's state
        await asyncio.sleep(0.2)
    assert is_so()


def is_idle(endpoint: Live) -> bool:
    """Return whether no model holds a sequence, a token of its cache, or a place in its queue."""
    gauges = ("running_sequences", "cache_tokens", "queue_items")
    return not sum(metric(endpoint, f"model_endpoint_{gauge}") for gauge in gauges)


async def test_every_door_says_the_same(endpoint: Live, http: httpx.AsyncClient) -> None:
    parameters = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}
    texts = {"completions": (await http.post("/v1/completions", json=wish())).json()["choices"][0]["text"]}
    streamed = [event async for event in events(http, "/v1/completions", wish(stream=True))]
    texts["completions, streamed"] = "".join(event["choices"][0]["text"] for event in streamed)
    body: dict[str, Any] = {"text_input": "hello", "parameters": parameters}
    texts["generate"] = (await http.post("/v2/models/tiny/generate", json=body)).json()["text_output"]
    streamed = [event async for event in events(http, "/v2/models/tiny/generate_stream", body)]
    texts["generate_stream"] = "".join(event["text_output"] for event in streamed)
    assert len(streamed) > 1
    assert [event.get("finish_reason") for event in streamed] == [None] * (len(streamed) - 1) + ["length"]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello"]}
    answer = await http.post("/v2/models/tiny/infer", json={"inputs": [tensor], "parameters": parameters})
    texts["infer"] = next(one["data"][0] for one in answer.json()["outputs"] if one["name"] == "text")
    native = {"model": "tiny", "inputs": ["hello"], "parameters": parameters}
    answer = await http.post("/v1/predict", json=native)
    texts["predict"] = answer.text
    assert json.dumps(texts["completions"])[1:-1] in json.dumps(answer.json())
    del texts["predict"]
    assert set(texts.values()) == {texts["completions"]}, texts


async def test_responses_stream_what_chat_says(endpoint: Live) -> None:
    async with openai.AsyncOpenAI(base_url=f"{endpoint.http_url}/v1", api_key="none", max_retries=0) as client:
        chat = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}], temperature=0, max_completion_tokens=20
        )
        whole = await client.responses.create(model="tiny", input="hello", temperature=0, max_output_tokens=20)
        stream = await client.responses.create(
            model="tiny", input="hello", temperature=0, max_output_tokens=20, stream=True
        )
        pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert chat.choices[0].message.content == whole.output_text == "".join(pieces)


async def test_adapters_and_their_base_share_its_weights_and_its_batch(endpoint: Live) -> None:
    async def one(client: openai.AsyncOpenAI, model: str, prompt: str) -> str:
        more: dict[str, Any] = {"extra_body": {"ignore_eos": True}}
        stream = await client.completions.create(
            model=model, prompt=prompt, max_tokens=200, temperature=0, stream=True, **more
        )
        return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    asked = [(model, prompt) for prompt in ("hello", "you", "open the door", "a") for model in MODELS]
    async with openai.AsyncOpenAI(base_url=f"{endpoint.http_url}/v1", api_key="none", max_retries=0) as client:
        alone = {pair: await one(client, *pair) for pair in asked}
        steps = metric(endpoint, "model_endpoint_step_seconds_count")
        together = await asyncio.gather(*(one(client, *pair) for pair in asked))
        steps = metric(endpoint, "model_endpoint_step_seconds_count") - steps
    assert dict(zip(asked, together, strict=True)) == alone
    assert all(len({alone[model, prompt] for model in MODELS}) == 3 for _, prompt in asked)
    assert steps < 3 * 200  # of 12 × 200 tokens: bases and adapters ran in one batch
    assert metric(endpoint, "model_endpoint_loads_total", model="tiny") == 1
    held = {model: metric(endpoint, "model_endpoint_resident_bytes", model=model) for model in MODELS}
    assert all(0 < held[adapter] < held["tiny"] / 50 for adapter in ADAPTERS), held


def test_tritonclient_streams_tokens(client_python: Path, endpoint: Live) -> None:
    assert len(run(client_python, "triton_tokens.py", endpoint)) == 4
    asyncio.run(until(lambda: is_idle(endpoint)))


async def test_a_python_caller_that_closes_its_stream_stops_the_generation(endpoint: Live) -> None:
    script = """
import asyncio, ray; ray.init(log_to_driver=False)
from serve_app.client import connect
endpoint, wish = connect(), {"max_tokens": 4000, "temperature": 0.0, "ignore_eos": True}
stream = endpoint.stream("tiny", "hello", parameters=wish)
print("said", len(next(iter(stream)).text) > 0)
stream.close()

async def leave():
    async for chunk in endpoint.stream("tiny", "hello", parameters=wish):
        return chunk.text
print("said", len(asyncio.run(leave())) > 0)
"""
    generated = metric(endpoint, "model_endpoint_generated_tokens_total")
    said = await asyncio.to_thread(endpoint.run_driver, script)
    assert said.split() == ["said", "True"] * 2
    await until(lambda: is_idle(endpoint))
    assert metric(endpoint, "model_endpoint_generated_tokens_total") - generated < 6000


async def test_a_deadline_that_passes_mid_stream_is_an_error_event_and_frees(
    endpoint: Live, http: httpx.AsyncClient
) -> None:
    told = [one async for one in events(http, "/v1/completions", wish(n_tokens=4000, stream=True), **{TIMEOUT: "0.7"})]
    assert len(told) > 1
    assert told[-1]["error"]["code"] == "deadline_exceeded"
    assert not any("error" in one for one in told[:-1])
    body = {"text_input": "hello", "parameters": {"max_tokens": 4000, "ignore_eos": True}}
    told = [one async for one in events(http, "/v2/models/tiny/generate_stream", body, **{TIMEOUT: "0.7"})]
    assert "error" in told[-1]
    await until(lambda: is_idle(endpoint))


async def test_200_streams_left_at_random_leave_nothing_behind(endpoint: Live, http: httpx.AsyncClient) -> None:
    chance = random.Random(7)
    expected = {
        model: "".join([one["choices"][0]["text"] async for one in events(http, "/v1/completions", body)])
        for model, body in ((model, wish(n_tokens=60, model=model, stream=True)) for model in MODELS)
    }
    await until(lambda: is_idle(endpoint))
    tasks_before = metric(endpoint, "model_endpoint_tasks")
    generated = metric(endpoint, "model_endpoint_generated_tokens_total")

    async def read_a_little(model: str, n_events: int) -> None:
        long = events(http, "/v1/completions", wish(n_tokens=4000, model=model, stream=True))
        async with aclosing(long) as stream:  # type: ignore[type-var]  # an async generator
            async for _ in stream:
                n_events -= 1
                if n_events < 0:
                    return

    async def read_all(model: str) -> None:
        text = [
            one["choices"][0]["text"]
            async for one in events(http, "/v1/completions", wish(n_tokens=60, model=model, stream=True))
        ]
        assert "".join(text) == expected[model]

    tasks = []
    for index in range(200):
        model = chance.choice(MODELS)
        one = read_all(model) if index % 5 == 0 else read_a_little(model, chance.choice([0, 1, 5, 50, 10**6]))
        tasks.append(asyncio.create_task(one))
        if index % 5:
            asyncio.get_running_loop().call_later(chance.uniform(0, 6), tasks[-1].cancel)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}, outcomes
    await until(lambda: is_idle(endpoint))
    assert metric(endpoint, "model_endpoint_generated_tokens_total") - generated < 200 * 4000 / 4
    await until(lambda: metric(endpoint, "model_endpoint_tasks") <= tasks_before + 2)  # of the scrape itself


async def test_a_reader_that_stands_still_holds_nobody_up_and_gets_it_all_in_the_end(
    endpoint: Live, http: httpx.AsyncClient
) -> None:
    body = json.dumps(wish(n_tokens=LIMIT - 100, stream=True, n=8)).encode()
    host, port = endpoint.http_url.removeprefix("http://").split(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body)
        await until(lambda: metric(endpoint, "model_endpoint_running_sequences", model="tiny") == 8)
        seconds = time.monotonic()
        text = [one["choices"][0]["text"] async for one in events(http, "/v1/completions", wish(stream=True))]
        assert time.monotonic() - seconds < 10
        assert "".join(text)
        await until(lambda: is_idle(endpoint), 120)  # the batch has gone on to its end without this reader
        answer = await asyncio.to_thread(_rest, slow)
    said = [json.loads(line[6:]) for line in answer.decode().splitlines() if line.startswith("data: {")]
    texts = ["" for _ in range(8)]
    for one in said:
        texts[one["choices"][0]["index"]] += one["choices"][0]["text"]
    assert len(set(texts)) == 1
    assert texts[0].startswith("".join(text))
    assert [one["choices"][0]["finish_reason"] for one in said].count("length") == 8
    assert answer.rstrip(b"0\r\n").endswith(b"data: [DONE]")


def _rest(connection: socket.socket) -> bytes:
    """Read to the end; undo the chunks of the transfer."""
    raw = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    raw, text = raw.partition(b"\r\n\r\n")[2], b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        text, raw = text + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    return text


async def test_streams_live_through_two_changes_of_their_model(
    endpoint: Live, http: httpx.AsyncClient, saved: dict[str, Path]
) -> None:
    async def all_of(model: str) -> str:
        body = wish(n_tokens=1500, model=model, stream=True)
        return "".join([one["choices"][0]["text"] async for one in events(http, "/v1/completions", body)])

    expected = {model: await all_of(model) for model in MODELS}
    running = [asyncio.create_task(all_of(model)) for model in MODELS]
    await until(lambda: metric(endpoint, "model_endpoint_running_sequences") == 3)
    for n in (11, 12):
        await asyncio.to_thread(endpoint.deploy, language_models(saved, max_new_tokens=n))
        running += [asyncio.create_task(all_of(model)) for model in MODELS]
    assert [await one for one in running] == [expected[model] for model in MODELS] * 3
    await until(lambda: metric(endpoint, "model_endpoint_loads_total", model="tiny", outcome="success") == 3)


async def test_a_replica_that_dies_mid_stream_is_an_error_event(endpoint: Live, http: httpx.AsyncClient) -> None:
    replicas = endpoint.applications()["shared"]["deployments"]["Pool"]["replicas"]
    told: list[dict[str, Any]] = []
    async for one in events(http, "/v1/completions", wish(n_tokens=4000, stream=True)):
        told.append(one)
        if len(told) == 3:
            for replica in replicas:
                with suppress(ProcessLookupError):
                    os.kill(replica["pid"], signal.SIGKILL)
    assert len(told) > 3
    assert told[-1]["error"]["code"] == "replica_lost", told[-1]
    assert (await http.post("/v1/completions", json=wish())).status_code == 200
