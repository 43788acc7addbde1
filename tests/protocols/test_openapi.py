import re
from importlib import resources

import httpx
import pytest
from openapi_spec_validator import validate

from serve_app.protocols import ENDPOINTS
from serve_app.protocols.types import Action, Endpoint

POSTS = [row for row in ENDPOINTS if row.request]


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    loaded: dict[str, dict[str, dict[str, dict[str, object]]]] = (await client.get("/openapi.json")).json()
    return loaded


async def test_the_document_is_valid_openapi(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    validate(document)


async def test_every_row_is_described(document: dict[str, dict[str, dict[str, object]]]) -> None:
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(row.method, row.path.replace(":path", "")) for row in ENDPOINTS}


async def test_errors_have_the_envelope_of_their_protocol(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    expected = {
        "/v1/predict": "NativeError",
        "/v1/embeddings": "OpenAIError",
        "/v2/predict": "V2Error",
        "/v2/models/{model}/infer": "V2Error",
    }
    for path, name in expected.items():
        responses = paths[path]["post"]["responses"]
        assert {"400", "404", "405", "413", "429", "500", "503", "504"} < set(responses)
        refs = {r["content"]["application/json"]["schema"]["$ref"] for s, r in responses.items() if s != "200"}
        assert refs == {f"#/components/schemas/{name}"}


@pytest.mark.parametrize("row", POSTS, ids=lambda row: str(row.path))
async def test_examples_run(client: httpx.AsyncClient, row: Endpoint) -> None:
    operation = (await client.get("/openapi.json")).json()["paths"][row.path]["post"]
    path = row.path
    for parameter in operation.get("parameters", []):
        path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
    response = await client.post(path, json=operation["requestBody"]["content"]["application/json"]["example"])
    assert response.status_code == 200, response.text
    content = response.content
    if row.streams == "always":
        content = content.partition(b"data: ")[2].partition(b"\n\n")[0]
    assert row.response
    assert row.response.model_validate_json(content, strict=False)


@pytest.mark.parametrize(
    "row", [row for row in ENDPOINTS if row.answer and row.response], ids=lambda row: str(row.path)
)
async def test_answers_are_what_the_document_says(client: httpx.AsyncClient, row: Endpoint) -> None:
    path = re.sub(r"\{(\w+)(:path)?\}", lambda match: {"version": "1"}.get(match[1], "minilm"), row.path)
    response = await client.request(row.method, path)
    assert response.status_code == 200
    assert row.response
    assert row.response.model_validate_json(response.content, strict=False)


def test_every_inference_row_parses_and_every_other_one_does_not() -> None:
    assert all((row.action is Action.INFER) == bool(row.parse) for row in ENDPOINTS)


async def test_the_page_needs_nothing_from_outside(client: httpx.AsyncClient) -> None:
    response = await client.get("/docs/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == resources.files("serve_app").joinpath("static/docs.html").read_bytes()
    assert not re.search(r"https?://|src=|@import|url\(", response.text)
