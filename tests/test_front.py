"""What stands before Serve's own handling of HTTP: its bare answers told as ours, its time limit kept from it."""

from typing import Any

import orjson
import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages, validate_http_proxy_callback_return

from serve_app.edges import check_head
from serve_app.front import Front, middlewares

OURS = [(b"content-type", b"application/json"), (b"server-timing", b"total;dur=1")]


class Serve:
    """Whatever stands behind; answers with these messages, and keeps the scope it was given."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = messages
        self.scope: dict[str, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        for message in self.messages:
            await send(message)


def bare(status: int, *extra: tuple[bytes, bytes]) -> list[dict[str, Any]]:
    return convert_object_to_asgi_messages("in Serve's own words", status_code=status, extra_headers=list(extra))


async def ask(
    serve: Serve, path: str = "/v1/embeddings", method: str = "POST", headers: Any = (), **scope: Any
) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nobody reads here")

    await Front(serve)(
        {"type": "http", "path": path, "method": method, "headers": list(headers), **scope}, receive, send
    )
    start, *bodies = sent
    names = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], names, b"".join(message.get("body", b"") for message in bodies)


@pytest.mark.parametrize(
    ("serves", "status", "code"),
    [
        (404, 404, "route_not_found"),
        (408, 504, "deadline_exceeded"),
        (429, 429, "overloaded"),
        (500, 500, "internal"),
        (503, 503, "pool_unavailable"),
    ],
)
async def test_what_serve_says_is_said_in_the_protocol_of_the_path(serves: int, status: int, code: str) -> None:
    found, headers, body = await ask(Serve(*bare(serves, (b"X-Request-ID", b"r1"))))
    assert found == status
    assert orjson.loads(body)["error"]["code"] == code
    assert headers["content-length"] == str(len(body))
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == "r1"
    assert headers["server-timing"].startswith("total;dur=")
    assert ("retry-after" in headers) is (code in ("overloaded", "pool_unavailable"))


async def test_the_envelope_is_the_one_of_the_path() -> None:
    _, _, v2 = await ask(Serve(*bare(429)), "/v2/models/m/infer/")
    assert isinstance(orjson.loads(v2)["error"], str)
    _, _, prefixed = await ask(Serve(*bare(429)), "/mine/v2/models/m/infer", root_path="/mine")
    assert prefixed == v2
    status, _, _ = await ask(Serve(*bare(503)), "/embed")
    assert status == 503


async def test_serves_own_wait_is_kept_and_head_has_no_body() -> None:
    status, headers, body = await ask(Serve(*bare(429, (b"retry-after", b"7"))), method="HEAD")
    assert (status, headers["retry-after"], body) == (429, "7", b"")


async def test_our_answers_and_serves_health_pass_as_they_are() -> None:
    for start in ({"status": 503, "headers": OURS}, {"status": 200, "headers": []}, {"status": 400, "headers": []}):
        ours = ({"type": "http.response.start", **start}, {"type": "http.response.body", "body": b"{}"})
        status, headers, body = await ask(Serve(*ours))
        assert (status, body) == (start["status"], b"{}")
        assert "content-length" not in headers
    assert (await ask(Serve(*bare(503)), "/-/healthz"))[2] == b"in Serve's own words"


async def test_a_stream_passes_piece_by_piece() -> None:
    pieces = [{"type": "http.response.body", "body": piece, "more_body": piece != b"c"} for piece in (b"a", b"b", b"c")]
    status, _, body = await ask(Serve({"type": "http.response.start", "status": 200, "headers": OURS}, *pieces))
    assert (status, body) == (200, b"abc")


async def test_serve_does_not_see_the_time_limit_and_we_do_in_full() -> None:
    serve = Serve(*bare(404))
    await ask(serve, headers=[(b"accept", b"*/*"), (b"x-request-timeout-seconds", b"0.5")])
    assert b"x-request-timeout-seconds" not in dict(serve.scope["headers"])
    assert check_head(serve.scope["headers"]).limit_s == 0.5


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no"), 400, "invalid_input"), (ValueError("secret"), 500, "internal")],
)
async def test_what_serve_stumbles_over_is_an_answer_too(error: Exception, status: int, code: str) -> None:
    async def stumbles(scope: Any, receive: Any, send: Any) -> None:
        raise error

    found, headers, body = await ask(stumbles)  # type: ignore[arg-type]
    assert (found, orjson.loads(body)["error"]["code"]) == (status, code)
    assert "secret" not in body.decode()
    assert headers["content-length"] == str(len(body))


async def test_what_breaks_after_it_began_is_not_answered_twice() -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": OURS})
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - raised here, without a message
        await ask(breaks)  # type: ignore[arg-type]


async def test_what_is_no_http_passes() -> None:
    serve = Serve()
    await Front(serve)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert serve.scope == {"type": "lifespan"}


def test_serve_takes_it() -> None:
    [middleware] = validate_http_proxy_callback_return(middlewares())
    assert middleware.cls is Front
