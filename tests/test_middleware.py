import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
import numpy as np
import orjson
import pytest
from edge_fakes import MAX_BODY_BYTES, FakeGateway
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import BodyTooLarge
from serve_app.compression import MIN_BYTES, pack
from serve_app.middleware import ACCESS, REQUEST_ID, ROUTE, AccessLog, BodyLimit, TrailingSlash


class Echo:
    """Reads the whole body and answers its length and path; keeps the scope."""

    def __init__(self) -> None:
        self.scope: Scope = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        scope[ROUTE] = "/echo"
        n_bytes, more = 0, True
        while more:
            message = await receive()
            n_bytes += len(message["body"])
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": f"{n_bytes} {scope['path']}".encode()})


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://endpoint")


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


async def test_a_body_at_the_limit_passes_with_or_without_its_length() -> None:
    async with client_of(BodyLimit(Echo(), 10)) as client:
        assert (await client.post("/", content=b"x" * 10)).text == "10 /"
        assert (await client.post("/", content=chunks(5, 5))).text == "10 /"


async def test_a_declared_length_over_the_limit_is_refused_before_a_byte_is_read() -> None:
    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    scope = {"type": "http", "headers": [(b"content-length", b"11")]}
    with pytest.raises(BodyTooLarge) as caught:
        await BodyLimit(Echo(), 10)(scope, receive, send)
    assert caught.value.details["max_bytes"] == 10


async def test_a_streamed_body_is_stopped_when_it_is_over() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"xxxx"

    async with client_of(BodyLimit(Echo(), 10)) as client:
        with pytest.raises(BodyTooLarge):
            await client.post("/", content=endless())
    assert sent == 3


@pytest.mark.parametrize("length", [b"-5", b"ten", b"", b"1.5"])
async def test_a_length_that_is_no_number_does_not_get_around_the_limit(length: bytes) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 11}

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    with pytest.raises(BodyTooLarge):
        await BodyLimit(Echo(), 10)({"type": "http", "headers": [(b"content-length", length)]}, receive, send)


@pytest.mark.parametrize(("path", "seen"), [("/", "/"), ("/v2/", "/v2"), ("/v2", "/v2"), ("/v2//", "/v2"), ("//", "/")])
async def test_a_trailing_slash_makes_no_difference(path: str, seen: str) -> None:
    app = Echo()

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        return None

    await TrailingSlash(app)({"type": "http", "path": path}, receive, send)
    assert app.scope["path"] == seen


class Watch:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int, float]] = []
        self.now = 0.0

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        self.seen.append((method, route, status, seconds))

    def clock(self) -> float:
        self.now += 0.25
        return self.now


async def test_one_line_and_one_count_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, ACCESS.name)
    watch, app = Watch(), Echo()
    async with client_of(AccessLog(app, watch.observe, watch.clock)) as client:
        await client.post("/x", content=b"ab", headers={"X-Request-ID": "r-1"})
    assert watch.seen == [("POST", "/echo", 201, 0.25)]
    assert [record.getMessage() for record in caplog.records] == ["POST /x 201 250.0ms r-1"]
    assert app.scope[REQUEST_ID] == "r-1"


async def test_lines_of_a_busy_moment_share_a_record_and_none_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, ACCESS.name)
    async with client_of(AccessLog(Echo(), Watch().observe)) as client:
        for n in range(50):
            await client.get("/x", headers={"X-Request-ID": f"r-{n}"})
        await asyncio.sleep(0.25)
        await client.get("/x", headers={"X-Request-ID": "r-50"})
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    assert [line.rpartition(" ")[2] for line in lines] == [f"r-{n}" for n in range(51)]
    assert len(caplog.records) <= 10
    assert caplog.records[-1].getMessage().endswith("r-50")  # alone again, it is written at once


async def test_a_request_without_an_id_gets_its_own_and_a_long_one_is_cut() -> None:
    watch, app = Watch(), Echo()
    ids = []
    async with client_of(AccessLog(app, watch.observe)) as client:
        for headers in ({}, {}, {"X-Request-ID": "r" * 1000}):
            await client.get("/x", headers=headers)
            ids.append(app.scope[REQUEST_ID])
    assert len(set(ids)) == 3
    assert [len(value) for value in ids] == [32, 32, 128]


async def test_a_request_that_ends_without_an_answer_counts_as_499() -> None:
    async def gone(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError

    async def nothing(*_: object) -> Message:
        return {}

    watch = Watch()
    scope = {"type": "http", "method": "BREW", "path": "/", "headers": []}
    with pytest.raises(ValueError):  # noqa: PT011 - raised here, without a message
        await AccessLog(gone, watch.observe)(scope, nothing, nothing)  # type: ignore[arg-type]
    assert watch.seen[0][:3] == ("OTHER", "unmatched", 499)


async def test_packed_bodies_are_unpacked_and_big_answers_packed(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    gateway.outputs = {"y": np.zeros(MIN_BYTES, dtype=np.uint8)}
    body = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})
    for encoding in ("gzip", "deflate"):
        headers = {"content-encoding": encoding, "accept-encoding": encoding}
        response = await client.post("/v2/models/adder/infer", content=pack(body, encoding), headers=headers)
        assert response.headers["content-encoding"] == encoding
        assert int(response.headers["content-length"]) < MIN_BYTES / 4
        assert response.json()["outputs"][0]["shape"] == [MIN_BYTES]


async def test_small_answers_and_unwilling_clients_get_them_as_they_are(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    small = await client.get("/v2", headers={"accept-encoding": "gzip"})
    gateway.outputs = {"y": np.zeros(MIN_BYTES, dtype=np.uint8)}
    x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    big = await client.post("/v2/models/adder/infer", json={"inputs": [x]}, headers={"accept-encoding": "br"})
    assert "content-encoding" not in small.headers
    assert "content-encoding" not in big.headers


async def test_a_bomb_is_413_and_an_unknown_encoding_415(client: httpx.AsyncClient) -> None:
    bomb = pack(bytes(MAX_BODY_BYTES + 1), "gzip")
    refused = await client.post("/v2/models/adder/infer", content=bomb, headers={"content-encoding": "gzip"})
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
    unknown = await client.post("/v2/models/adder/infer", content=b"{}", headers={"content-encoding": "br"})
    assert (unknown.status_code, unknown.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert "Unsupported compression type" in unknown.json()["error"]
