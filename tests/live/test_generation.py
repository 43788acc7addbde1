"""Generation through the whole of it: a tiny model behind every streaming door, clients that leave; one real model."""

import asyncio
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from echo_pool import config
from live_cluster import Live
from tiny_models import build

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "chat" / "serve_config.yaml"
HELLO: Any = [{"role": "user", "content": "hello"}]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("requests")


@pytest.fixture(scope="module")
def endpoint(cluster: Live, log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Live:
    folder = build("llama", tmp_path_factory.mktemp("models") / "llama")
    entry = {
        "name": "tiny",
        "task": "text-generation",
        "source": {"path": str(folder)},
        "pinned": True,
        "timeout_s": 60,
    }
    entry["options"] = {"cache_bytes": "4MiB"}
    broken = shutil.copytree(folder, folder.parent / "broken")
    broken.joinpath("model.safetensors").write_bytes(b"no weights")
    bad = [entry | {"name": name, "source": {"path": str(broken)}, "pinned": False} for name in ("dead", "deadest")]
    parsed = config(entry, *bad, pool={"max_ongoing_requests": 256})
    parsed["applications"][0]["deployments"][0]["user_config"] |= {
        "fallbacks": {"dead": {"to": ["tiny"]}},
        "breaker": {"min_requests": 3, "open_s": 60, "max_open_s": 60},
        "request_log": {"url": str(log_folder), "flush_s": 0.2},
    }
    cluster.deploy(parsed)
    return cluster


@pytest.fixture
def log(log_folder: Path) -> Callable[[str], dict[str, Any]]:
    """Return what finds a request's line in the request log."""

    def find(request_id: str) -> dict[str, Any]:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            lines = [json.loads(line) for file in log_folder.iterdir() for line in file.read_text().splitlines()]
            if found := [line for line in lines if line["request_id"] == request_id]:
                return found[0]
            time.sleep(0.2)
        raise AssertionError(f"no line of {request_id}")

    return find


@pytest.fixture
def http(endpoint: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=endpoint.http_url, timeout=60, trust_env=False) as opened:
        yield opened


def api(endpoint: Live, kind: Any = openai.OpenAI) -> Any:
    return kind(base_url=f"{endpoint.http_url}/v1", api_key="none", max_retries=0)


def test_the_openai_client_streams_what_it_also_gets_at_once(endpoint: Live) -> None:
    wish = {"model": "tiny", "messages": HELLO, "max_completion_tokens": 30, "seed": 5, "temperature": 0.9, "n": 2}
    whole = api(endpoint).chat.completions.create(**wish)
    texts = ["", ""]
    usage = None
    for chunk in api(endpoint).chat.completions.create(**wish, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage or usage
    assert texts == [choice.message.content for choice in whole.choices]
    assert usage == whole.usage


async def test_many_async_clients_at_once(endpoint: Live) -> None:
    async def one(client: Any, n: int) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=f"line {n}", max_tokens=20, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    async with api(endpoint, openai.AsyncOpenAI) as client:
        together = await asyncio.gather(*(one(client, n % 4) for n in range(24)))
        alone = [await one(client, n) for n in range(4)]
    assert together == [alone[n % 4] for n in range(24)]


def test_errors_before_the_first_token_have_their_status(endpoint: Live, http: httpx.Client) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        api(endpoint).chat.completions.create(model="tiny", messages=HELLO, temperature=5, stream=True)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        api(endpoint).completions.create(model="tiny", prompt="a", max_tokens=100_000, stream=True)
    with pytest.raises(openai.NotFoundError):
        api(endpoint).completions.create(model="tinny", prompt="a", stream=True)


def test_another_model_speaks_for_one_that_cannot_begin(
    endpoint: Live, http: httpx.Client, log: Callable[[str], dict[str, Any]]
) -> None:
    wish = {"prompt": "a", "max_tokens": 8, "temperature": 0, "stream": True}
    with http.stream("POST", "/v1/completions", json=wish | {"model": "tiny"}) as own:
        expected = said(own)
    with http.stream("POST", "/v1/completions", json=wish | {"model": "dead"}) as answer:
        assert answer.headers["x-fallback"] == "tiny:1"
        assert said(answer) == expected
    line = log(answer.headers["x-request-id"])
    assert (line["model"], line["version"], line["fallback"], line["code"]) == ("tiny", "1", "tiny:1", "ok")
    assert line["n_tokens"] > 0
    page = http.get("/metrics").text
    assert re.search(r'^model_endpoint_fallbacks_total\{.*by="tiny:1".*model="dead".*\} [1-9]', page, re.MULTILINE)


def said(answer: httpx.Response) -> str:
    events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


def test_streams_that_cannot_begin_open_the_circuit(http: httpx.Client, log: Callable[[str], dict[str, Any]]) -> None:
    wish = {"model": "deadest", "prompt": "a", "max_tokens": 4, "stream": True}
    answers = [http.post("/v1/completions", json=wish) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {503}
    codes = [answer.json()["error"]["code"] for answer in answers]
    assert codes[0] == "model_unavailable"
    assert codes[-1] == "circuit_open"
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert log(answers[-1].headers["x-request-id"])["code"] == "circuit_open"
    page = http.get("/metrics").text
    assert re.search(r'^model_endpoint_breaker_opened_total\{.*model="deadest".*\} 1', page, re.MULTILINE)


def metric(http: httpx.Client, name: str) -> float:
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'model="tiny"' in line)


def test_a_client_that_leaves_frees_its_cache(endpoint: Live, http: httpx.Client) -> None:
    body = {
        "model": "tiny",
        "prompt": "a",
        "max_tokens": 240,
        "temperature": 1,
        "ignore_eos": True,
        "stream": True,
        "n": 30,
    }
    generated = metric(http, "model_endpoint_generated_tokens_total")
    for _ in range(4):
        with http.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_bytes())
    until = time.monotonic() + 20
    while metric(http, "model_endpoint_running_sequences") and time.monotonic() < until:
        time.sleep(0.2)
    assert metric(http, "model_endpoint_running_sequences") == 0
    assert metric(http, "model_endpoint_cache_tokens") == 0
    assert metric(http, "model_endpoint_generated_tokens_total") - generated < 4 * 30 * 240


def test_python_callers_stream_through_a_handle(endpoint: Live) -> None:
    script = """
import ray; ray.init(log_to_driver=False)
from serve_app.client import connect
wish = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
endpoint = connect()
chunks = list(endpoint.stream("tiny", "hello", parameters=wish))
whole = endpoint.infer("tiny", "hello", parameters=wish).result()
print("same" if "".join(c.text for c in chunks).encode() == whole.outputs["text"][0] else (chunks, whole))
print(chunks[-1].finish, chunks[-1].usage.n_output_tokens, whole.usage.n_output_tokens)
try:
    list(endpoint.stream("tiny", "hello", parameters={"magic": 1}))
except Exception as exc:
    print(type(exc).__name__, exc.details["field"])
"""
    lines = endpoint.run_driver(script).splitlines()
    assert lines[-3:] == ["same", "length 12 12", "InvalidInput magic"]


def test_a_real_model_answers_a_chat(cluster: Live) -> None:
    cluster.deploy(EXAMPLE)
    answer = api(cluster).chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
        temperature=0,
        max_completion_tokens=24,
    )
    assert "Paris" in (answer.choices[0].message.content or "")
