"""The edge against the hostile: headers, slow bodies, browsers of other origins, forged log lines, bombs."""

import asyncio
import gzip
import json
import logging
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from edge_fakes import MAX_BODY_BYTES, FakeGateway

from deployments.errors import HeadersTooLarge, InvalidInput
from serve_app.config import CorsConfig, EndpointConfig
from serve_app.edges import MAX_HEADER_BYTES, MAX_HEADERS, check_head
from serve_app.middleware import ACCESS

PREDICT = {"model": "minilm", "inputs": "a"}


async def test_too_many_headers_or_too_long_ones_are_431(client: httpx.AsyncClient) -> None:
    many = {f"x-{n}": "1" for n in range(MAX_HEADERS)}
    for headers in (many, {"x-long": "1" * MAX_HEADER_BYTES}):
        response = await client.post("/v1/predict", json=PREDICT, headers=headers)
        assert response.status_code == 431
        assert response.json()["error"]["code"] == "headers_too_large"


def test_as_many_as_are_allowed_pass() -> None:
    head = check_head([(f"x-{n}".encode(), b"1") for n in range(MAX_HEADERS)])
    assert len(head.headers) == MAX_HEADERS
    with pytest.raises(HeadersTooLarge):
        check_head([(b"x", b"1")] * (MAX_HEADERS + 1))


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "content-length", "x-request-timeout-seconds"])
def test_what_may_come_once_may_not_come_twice(name: str) -> None:
    with pytest.raises(InvalidInput, match="more than once") as caught:
        check_head([(name.encode(), b"1"), (name.encode(), b"2")])
    assert caught.value.details["field"] == name


def test_other_headers_may_come_twice() -> None:
    assert check_head([(b"accept", b"a"), (b"accept", b"b")]).headers == {"accept": "b"}


@pytest.mark.parametrize(
    "name",
    [
        "x-request-disconnect-disabled",
        "serve_multiplexed_model_id",
        "Serve-Multiplexed-Model-Id",
        "serve_Multiplexed-model_id",
    ],
)
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/embeddings", "/v2/predict"])
async def test_orders_to_serve_are_refused(client: httpx.AsyncClient, path: str, name: str) -> None:
    response = await client.post(path, json=PREDICT, headers={name: "?1"})
    assert response.status_code == 400
    assert name.lower() in response.text


async def test_a_body_that_dawdles_is_408_and_takes_no_longer(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    async def dawdling() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" "
            await asyncio.sleep(0.05)

    gateway.config = EndpointConfig(body_timeout_s=0.2)
    began = time.monotonic()
    response = await client.post("/v1/predict", content=dawdling())
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "body_too_slow"
    assert time.monotonic() - began < 2.0
    assert gateway.requests == []


async def test_an_unknown_origin_is_told_nothing(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for _ in range(2):
        answer = await client.options("/v1/predict", headers=origin)
        assert "access-control-allow-origin" not in answer.headers
        assert answer.status_code in (400, 405)
        gateway.config = EndpointConfig(cors=CorsConfig(allow_origins=("https://app.example",)))


async def test_a_configured_origin_may_call_and_changes_at_once(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    for origin in ("https://app.example", "https://other.example"):
        gateway.config = EndpointConfig(cors=CorsConfig(allow_origins=(origin,)))
        preflight = await client.options("/v1/predict", headers={"Origin": origin, **ask})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        answer = await client.post("/v1/predict", json=PREDICT, headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        assert "retry-after" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


async def test_nobody_forges_a_line_of_the_access_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, ACCESS.name)
    await client.get("/x%0aGET%20/admin%20200%1b[31m", headers={"X-Request-ID": b"a\x9b31mb"})
    await client.get("/é", headers={"X-Request-ID": "plain-1"})
    await asyncio.sleep(0.15)  # lines of a busy tenth of a second share a record
    forged, plain = (record.getMessage() for record in caplog.records)
    assert forged.isprintable()
    assert "/é" in plain
    assert plain.endswith("plain-1")


@pytest.mark.parametrize(
    "shape",
    [
        [2**62],
        [2**31, 2**31],
        [2**63],
        [-1],
        [1] * 5000,
        [0] * 100,
        [10**30],
        [1.5],
        ["1"],
        [True],
    ],
)
async def test_a_monstrous_shape_is_a_quick_400(client: httpx.AsyncClient, shape: list[object]) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": shape, "data": [1.0]}
    began = time.monotonic()
    response = await client.post("/v2/models/adder/infer", content=json.dumps({"inputs": [tensor]}))
    assert response.status_code == 400, response.text
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("n", [101, 5000, 20_000])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")])
async def test_deep_json_is_a_quick_400(client: httpx.AsyncClient, n: int, opens: str, closes: str) -> None:
    deep = opens * n + "1" + closes * n
    body = f'{{"model": "minilm", "inputs": "a", "parameters": {{"x": {deep}}}}}'[: MAX_BODY_BYTES - 1]
    began = time.monotonic()
    response = await client.post("/v1/predict", content=body)
    assert response.status_code in (400, 413)
    assert time.monotonic() - began < 1.0


async def test_bombs_are_defused(client: httpx.AsyncClient) -> None:
    packed = {"Content-Encoding": "gzip"}
    began = time.monotonic()
    bomb = await client.post("/v1/predict", content=gzip.compress(b" " * 50_000_000), headers=packed)
    assert bomb.status_code == 413
    members = await client.post("/v1/predict", content=gzip.compress(b"") * 4000, headers=packed)
    assert members.status_code == 400
    assert "members" in members.json()["error"]["message"]
    assert time.monotonic() - began < 3.0
