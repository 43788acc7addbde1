"""`serve_app.client`: what callers may pass, and the thin HTTP client over the real edge."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from deployments.errors import InvalidInput, ServeError
from serve_app.client import Client, to_tensors


@pytest.mark.parametrize("given", ["a text", ["a text"], ("a text",), {"text": "a text"}, {"text": [b"a text"]}])
def test_texts_become_one_bytes_tensor(given: object) -> None:
    (array,) = to_tensors(given).values()  # type: ignore[arg-type]
    assert array.dtype == np.object_
    assert list(array) == [b"a text"]


def test_numbers_keep_their_type_and_arrays_are_not_copied() -> None:
    x = np.ones((2, 3), dtype=np.float32)
    tensors = to_tensors({"x": x, "rate": 16000})
    assert tensors["x"] is x
    assert tensors["rate"].dtype == np.int64


def test_anything_else_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="input 'x' is a object") as caught:
        to_tensors({"x": object()})
    assert caught.value.details["field"] == "x"


@pytest.fixture
def http(asgi: Starlette, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    client = Client("http://endpoint")
    monkeypatch.setattr(client, "_http", TestClient(asgi, base_url="http://endpoint"))
    yield client
    client.close()


def test_predict_returns_the_answer(http: Client) -> None:
    answer = http.predict("minilm", ["a", "b"])
    assert (answer["model"], answer["version"], len(answer["outputs"])) == ("minilm", "1", 2)
    assert http.is_ready()


def test_an_error_keeps_its_code_and_message(http: Client) -> None:
    with pytest.raises(ServeError, match="not found") as caught:
        http.predict("nobody", ["a"])
    assert (caught.value.details["code"], caught.value.details["status"]) == ("model_not_found", 404)


def test_an_answer_that_is_not_ours_is_an_error_too() -> None:
    def haproxy(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, text="<html>no server</html>")

    with Client("http://endpoint") as client:
        client._http = httpx.Client(base_url="http://endpoint", transport=httpx.MockTransport(haproxy))
        with pytest.raises(ServeError, match="503"):
            client.predict("minilm", ["a"])
