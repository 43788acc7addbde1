"""The same failure in every dialect: the status and the envelope that its clients read; TEI has statuses of its own."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from edge_fakes import FakeGateway

from deployments.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EmptyInput,
    EngineFailure,
    InputTooLong,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    PermissionDenied,
    PoolUnavailable,
    ServeError,
    Unauthenticated,
)

TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
# By dialect: a request that would succeed, and where its clients look for the message.
DIALECTS: dict[str, tuple[str, Any, Callable[[Any], str]]] = {
    "native": ("/v1/predict", {"model": "minilm", "inputs": "a"}, lambda body: body["error"]["message"]),
    "v2": ("/v2/models/minilm/infer", {"inputs": [TEXT]}, lambda body: body["error"]),
    "v1": ("/v1/models/minilm:predict", {"instances": ["a"]}, lambda body: body["error"]),
    "openai": ("/v1/embeddings", {"model": "minilm", "input": "a"}, lambda body: body["error"]["message"]),
    "openai-prefix": (
        "/openai/v1/embeddings",
        {"model": "minilm", "input": "a"},
        lambda body: body["error"]["message"],
    ),
    "moderations": ("/v1/moderations", {"input": "a"}, lambda body: body["error"]["message"]),
    "vllm": ("/score", {"text_1": "a", "text_2": "b"}, lambda body: body["error"]["message"]),
    "rerank": ("/v2/rerank", {"query": "q", "documents": ["a"]}, lambda body: body["message"]),
    "tei": ("/embed", {"inputs": "a"}, lambda body: body["error"]),
    "tei-model": ("/tei/mood/predict", {"inputs": "a"}, lambda body: body["error"]),
    "tei-tokens": ("/tei/minilm/tokenize", {"inputs": "a"}, lambda body: body["error"]),
    "tei-rerank": ("/rerank", {"query": "q", "texts": ["a"]}, lambda body: body["error"]),
    "jina": ("/rerank", {"query": "q", "documents": ["a"]}, lambda body: body["error"]),  # a path it shares with TEI
}
TEIS = {"tei", "tei-model", "tei-tokens", "tei-rerank", "jina"}
TEI_STATUSES: dict[type[ServeError], int] = {InvalidInput: 422, InputTooLong: 422, EngineFailure: 424}
ERRORS: list[tuple[ServeError, int]] = [
    (InvalidInput("x: is wrong", field="x"), 400),
    (InputTooLong("x: is too long", field="x"), 400),
    (EmptyInput("x: is empty", field="x"), 400),
    (Unauthenticated("a key is needed"), 401),
    (PermissionDenied("not for you"), 403),
    (ModelNotFound("unknown model: 'm' is not found"), 404),
    (BodyTooLarge("too large"), 413),
    (Overloaded("full", retry_after_s=1.2), 429),
    (EngineFailure("the model failed"), 500),
    (ModelUnavailable("cannot be loaded", reason="no file"), 503),
    (PoolUnavailable("nobody there", retry_after_s=1.0), 503),
    (DeadlineExceeded("too late"), 504),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_failure_has_its_status_and_envelope(
    client: httpx.AsyncClient, gateway: FakeGateway, dialect: str, error: ServeError, code: int
) -> None:
    path, body, message = DIALECTS[dialect]
    assert (await client.post(path, json=body)).status_code == 200
    gateway.error = error
    response = await client.post(path, json=body)
    assert response.status_code == (TEI_STATUSES.get(type(error), code) if dialect in TEIS else code)
    assert gateway.recorded[-1].status == response.status_code
    assert response.headers["content-type"] == "application/json"
    assert error.message in message(response.json())
    if error.retry_after_s is not None:
        assert response.headers["retry-after"] == str(int(-(-error.retry_after_s // 1)))
        assert response.headers["retry-after-ms"] == str(round(error.retry_after_s * 1000))
    assert ("x-should-retry" in response.headers) == (code == 500)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_bodies_that_are_nothing_are_wrong_input_everywhere(client: httpx.AsyncClient, dialect: str) -> None:
    path, _, message = DIALECTS[dialect]
    for content in (b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 200):
        response = await client.post(path, content=content)
        assert response.status_code == (422 if dialect in TEIS else 400)
        assert message(response.json()).startswith("body: ")


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_wrong_methods_and_internal_errors_keep_the_envelope(
    client: httpx.AsyncClient, gateway: FakeGateway, dialect: str
) -> None:
    path, body, message = DIALECTS[dialect]
    wrong = await client.put(path, json=body)
    assert wrong.status_code == 405
    assert "method PUT is not allowed" in message(wrong.json())
    gateway.error = RuntimeError("secret")
    broken = await client.post(path, json=body)
    assert broken.status_code == 500
    assert "internal error" in message(broken.json())
    assert "secret" not in broken.text
