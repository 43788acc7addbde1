import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import httpx
import orjson
import pytest
from edge_fakes import MAX_BODY_BYTES, FakeGateway
from starlette.applications import Starlette
from starlette.types import Message

from deployments.errors import (
    DeadlineExceeded,
    EngineFailure,
    InputTooLong,
    ModelUnavailable,
    Overloaded,
    PermissionDenied,
    PoolUnavailable,
    ServeError,
    Unauthenticated,
)
from deployments.types import InferRequest, InferResult
from serve_app.context import Context

BODIES: dict[str, object] = {
    "/v1/predict": {"model": "minilm", "inputs": "a"},
    "/v1/embeddings": {"model": "minilm", "input": "a"},
    "/v2/predict": {
        "model": "minilm",
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}],
    },
}


def native(body: dict[str, dict[str, str]]) -> str:
    assert set(body["error"]) == {"code", "message", "details", "request_id"}
    return body["error"]["message"]


def openai(body: dict[str, dict[str, str]]) -> str:
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["message"]


def v2(body: dict[str, str]) -> str:
    assert next(iter(body)) == "error"
    return body["error"]


ENVELOPES: dict[str, Callable[..., str]] = {"/v1/predict": native, "/v1/embeddings": openai, "/v2/predict": v2}
DOORS = pytest.mark.parametrize("path", BODIES)
ERRORS = [
    (InputTooLong("text[0]: has 600 tokens, at most 512", field="text"), 400),
    (Overloaded("too much is waiting", retry_after_s=1.2), 429),
    (EngineFailure("the model raised"), 500),
    (ModelUnavailable("cannot be loaded", reason="disk"), 503),
    (PoolUnavailable("no replica"), 503),
    (DeadlineExceeded("not ready in 2 s"), 504),
]


@DOORS
@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda value: getattr(value, "code", value))
async def test_every_error_has_its_status_in_the_envelope_of_its_door(
    client: httpx.AsyncClient, gateway: FakeGateway, path: str, error: ServeError, status: int
) -> None:
    gateway.error = error
    response = await client.post(path, json=BODIES[path])
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert ENVELOPES[path](response.json()) == error.message
    assert response.headers.get("retry-after") == ("2" if isinstance(error, Overloaded) else None)
    assert gateway.observed == [("POST", path, status)]


@DOORS
async def test_an_unforeseen_exception_is_hidden_but_logged_once_with_its_id(
    client: httpx.AsyncClient, gateway: FakeGateway, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    gateway.error = RuntimeError("secret")
    response = await client.post(path, json=BODIES[path], headers={"X-Request-ID": "r-7"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "'r-7'" in ENVELOPES[path](response.json())
    failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(failures) == 1
    assert "r-7" in failures[0].getMessage()
    assert failures[0].exc_info
    assert "x-request-id" not in response.headers  # Serve adds it


@DOORS
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"[" * 5000])
async def test_a_broken_body_is_400_in_every_envelope(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    response = await client.post(path, content=body)
    assert response.status_code == 400
    assert "body: " in ENVELOPES[path](response.json())


@DOORS
async def test_a_body_over_the_limit_is_413_declared_or_streamed(client: httpx.AsyncClient, path: str) -> None:
    async def streamed() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * (MAX_BODY_BYTES // 2)

    for content in (b"x" * (MAX_BODY_BYTES + 1), streamed()):
        response = await client.post(path, content=content)
        assert response.status_code == 413
        assert str(MAX_BODY_BYTES) in ENVELOPES[path](response.json())


@DOORS
async def test_a_body_that_is_not_packed_as_it_says_is_400(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, content=b"x", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 400
    assert "body: ends before its gzip data does" in ENVELOPES[path](response.json())


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/octet-stream"])
async def test_no_content_type_is_refused(client: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    body = b'{"model": "minilm", "inputs": "a"}'
    assert (await client.post("/v1/predict", content=body, headers=headers)).status_code == 200


UNKNOWN = [
    ("/v2/nope", v2),
    ("/v2/models/a/b/c", v2),
    ("/v1/embeddings/x", openai),
    ("/v1/nope", native),
    ("/nothing", native),
]


@pytest.mark.parametrize(("path", "message_of"), UNKNOWN)
async def test_an_unknown_path_is_404_in_the_envelope_of_its_family(
    client: httpx.AsyncClient, gateway: FakeGateway, path: str, message_of: Callable[..., str]
) -> None:
    response = await client.post(path)
    assert response.status_code == 404
    assert path in message_of(response.json())
    assert gateway.observed == [("POST", "unmatched", 404)]


WRONG = [
    ("GET", "/v2/predict", "POST", v2),
    ("DELETE", "/v2/models/minilm", "GET, HEAD", v2),
    ("GET", "/v1/embeddings/", "POST", openai),
    ("POST", "/v1/models", "GET, HEAD", openai),
    ("PUT", "/v1/predict", "POST", native),
    ("POST", "/health", "GET, HEAD", native),
]


@pytest.mark.parametrize(("method", "path", "allow", "message_of"), WRONG)
async def test_a_wrong_method_is_405_and_says_which_are_right(
    client: httpx.AsyncClient, method: str, path: str, allow: str, message_of: Callable[..., str]
) -> None:
    response = await client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allow
    assert allow in message_of(response.json())


async def test_head_answers_as_get_without_a_body(client: httpx.AsyncClient) -> None:
    head, get = await client.head("/v2"), await client.get("/v2")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v1/models", "/v1/models/minilm", "/v2/models/minilm"])
async def test_a_trailing_slash_is_no_redirect(client: httpx.AsyncClient, gateway: FakeGateway, path: str) -> None:
    assert (await client.get(f"{path}/")).json() == (await client.get(path)).json()
    assert gateway.observed[0] == gateway.observed[1]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-request-disconnect-disabled", "?1"),
        ("x-request-disconnect-disabled", "?0"),
        *(("x-request-timeout-seconds", value) for value in ("0", "-1", "soon", "nan", "inf", "")),
    ],
)
async def test_serves_own_control_headers_are_refused_where_they_would_harm(
    client: httpx.AsyncClient, header: str, value: str
) -> None:
    response = await client.post("/v1/predict", json=BODIES["/v1/predict"], headers={header: value})
    assert response.status_code == 400
    assert response.json()["error"]["details"]["field"] == header


@pytest.mark.parametrize(("header", "own", "left"), [("2.5", None, 2.45), ("2.5", 1.0, 1.0), ("0.1", 9.0, 0.08)])
async def test_the_timeout_header_lowers_the_requests_own(
    client: httpx.AsyncClient, gateway: FakeGateway, header: str, own: float | None, left: float
) -> None:
    body = {"model": "minilm", "inputs": "a", "timeout_s": own}
    await client.post("/v1/predict", json=body, headers={"x-request-timeout-seconds": header})
    assert gateway.requests[0].timeout_s == pytest.approx(left)


async def test_the_request_id_travels_with_the_request(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    await client.post("/v1/predict", json=BODIES["/v1/predict"], headers={"X-Request-ID": "r-1"})
    assert gateway.requests[0].request_id == "r-1"


async def test_whoever_loads_a_model_leaves_a_line_refused_or_not(
    client: httpx.AsyncClient, gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app.audit")
    path = "/v2/repository/models/minilm/load"
    await client.post(path, headers={"X-Request-ID": "r-1"})
    gateway.refusal = PermissionDenied("may not")
    await client.post(path, headers={"X-Request-ID": "r-2"})
    texts = [r.getMessage() for r in caplog.records if r.name == "serve_app.audit"]
    lines = [orjson.loads(text.removeprefix("audit ")) for text in texts]
    assert [(line["path"], line["request_id"], line["status"], line["code"]) for line in lines] == [
        ({"model": "minilm"}, "r-1", 200, "ok"),
        ({"model": "minilm"}, "r-2", 403, "permission_denied"),
    ]


async def test_health_stays_and_ready_follows_the_models(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    rejected = {"bad:1": "task: no such task"}
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "waiting": {}, "rejected": rejected})
    gateway.models.waiting = {"minilm:1": "LOADING"}
    ready = await client.get("/ready")
    assert ready.status_code == 503
    assert ready.json() == {"ready": False, "waiting": {"minilm:1": "LOADING"}, "rejected": rejected}
    assert (await client.get("/health")).status_code == 200


async def test_metrics_are_the_gateways(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert response.text == "# TYPE up gauge\nup 1\n"


class SlowGateway(FakeGateway):
    def __init__(self) -> None:
        super().__init__()
        self.started = asyncio.Event()
        self.was_cancelled = False

    async def infer(self, request: InferRequest, context: Context) -> InferResult:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        raise AssertionError


@pytest.mark.parametrize("gateway", [SlowGateway()], ids=["slow"])
async def test_cancelling_the_request_cancels_the_work(client: httpx.AsyncClient, gateway: SlowGateway) -> None:
    task = asyncio.create_task(client.post("/v1/predict", json=BODIES["/v1/predict"]))
    await gateway.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gateway.was_cancelled
    assert gateway.observed == [("POST", "/v1/predict", 499)]


async def test_a_client_that_leaves_while_sending_is_no_failure(
    asgi: Starlette, gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there to read it")

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": [], "query_string": b""}
    await asgi(scope, receive, send)
    assert gateway.observed == [("POST", "/v1/predict", 499)]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@DOORS
@pytest.mark.parametrize(("refusal", "status"), [(Unauthenticated("no key"), 401), (PermissionDenied("no"), 403)])
async def test_a_caller_who_may_not_is_refused_before_the_body_is_read(
    client: httpx.AsyncClient, gateway: FakeGateway, path: str, refusal: ServeError, status: int
) -> None:
    gateway.refusal = refusal
    response = await client.post(path, content=b"not even JSON")
    assert response.status_code == status
    assert ENVELOPES[path](response.json()) == refusal.message
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


async def test_health_asks_for_no_key(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.refusal = Unauthenticated("no key")
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/metrics")).status_code == 401


@pytest.mark.parametrize("path", ["/v1/predict", "/nowhere", "/health"])
async def test_every_answer_says_where_its_time_went(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json=BODIES.get(path, {}))
    parts = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert float(parts["total"]) > 0
    if path == "/v1/predict":
        assert (parts["prepare"], parts["queue"], parts["run"]) == ("1.000", "2.000", "12.346")


async def test_a_request_is_recorded_once_however_it_ends(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    await client.post("/v1/predict", json=BODIES["/v1/predict"])
    await client.post("/v1/predict", content=b"{")
    gateway.error = RuntimeError("secret")
    await client.post("/v1/predict", json=BODIES["/v1/predict"])
    ends = [(context.route, context.status, context.code) for context in gateway.recorded]
    assert ends == [
        ("/v1/predict", 200, "ok"),
        ("/v1/predict", 400, "invalid_input"),
        ("/v1/predict", 500, "internal"),
    ]


@pytest.mark.parametrize("path", ["/v1/models/a%0Ab", "/nowhere%0A", "/v2/%0d%0a/x"])
async def test_a_path_with_a_line_break_gets_the_same_404_as_any_other(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
