import base64
from collections.abc import AsyncIterator

import httpx
import httpx2
import numpy as np
import openai
import pytest
from edge_fakes import FakeGateway
from starlette.applications import Starlette

from deployments.errors import ModelUnavailable

EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
async def sdk(asgi: Starlette) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield the real client library; it asks for base64 unless told otherwise."""
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(asgi))
    async with openai.AsyncOpenAI(
        api_key="unused", base_url="http://endpoint/v1", http_client=http, max_retries=0
    ) as opened:
        yield opened


async def test_the_client_library_reads_embeddings(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.embeddings.create(model="minilm", input=["a", "b"])
    assert [entry.embedding for entry in answer.data] == [[1.0, 0.0, 0.0, 3.0], [2.0, 0.0, 0.0, 3.0]]
    assert [entry.index for entry in answer.data] == [0, 1]
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("minilm", 6, 6)


async def test_the_client_library_lists_and_retrieves_models(sdk: openai.AsyncOpenAI) -> None:
    ids = [model.id async for model in sdk.models.list()]
    assert {"minilm", "mood", "mood:1"} <= set(ids)
    assert "mood:2" not in ids
    model = await sdk.models.retrieve("mood:1")
    assert (model.id, model.owned_by, model.model_extra) == (
        "mood:1",
        "model-endpoint",
        {"task": "text-classification", "version": "1", "name": "mood", "ready": True},
    )


async def test_the_client_library_raises_its_own_errors(sdk: openai.AsyncOpenAI, gateway: FakeGateway) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.embeddings.create(model="nope", input="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        await sdk.embeddings.create(model="mood", input="a")
    assert (bad.value.param, bad.value.type) == ("model", "invalid_request_error")
    assert "'mood' does text-classification" in bad.value.message
    gateway.error = ModelUnavailable("model 'minilm:1' cannot be loaded", reason="disk")
    with pytest.raises(openai.InternalServerError) as down:
        await sdk.embeddings.create(model="minilm", input="a")
    assert (down.value.status_code, down.value.code) == (503, "model_unavailable")


async def test_the_whole_answer_as_floats(client: httpx.AsyncClient) -> None:
    response = await client.post(EMBEDDINGS, json={"model": "minilm", "input": "a", "user": "u"})
    assert response.json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [1.0, 0.0, 0.0, 3.0]}],
        "model": "minilm",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


async def test_base64_is_little_endian_float32(client: httpx.AsyncClient) -> None:
    body = {"model": "minilm", "input": "a", "encoding_format": "base64"}
    coded = (await client.post(EMBEDDINGS, json=body)).json()["data"][0]["embedding"]
    assert base64.b64decode(coded) == np.array([1, 0, 0, 3], dtype="<f4").tobytes()


async def test_dimensions_cut_and_normalise(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.outputs = {"embedding": np.array([[3, 4, 12, 0], [0, 0, 5, 5]], dtype=np.float32)}
    body = {"model": "minilm", "input": ["a", "b"], "dimensions": 2}
    data = (await client.post(EMBEDDINGS, json=body)).json()["data"]
    np.testing.assert_allclose([entry["embedding"] for entry in data], [[0.6, 0.8], [0, 0]], atol=1e-6)


async def test_all_dimensions_leave_the_vector_as_it_is(client: httpx.AsyncClient) -> None:
    body = {"model": "minilm", "input": "a", "dimensions": 4}
    assert (await client.post(EMBEDDINGS, json=body)).json()["data"][0]["embedding"] == [1.0, 0.0, 0.0, 3.0]


BAD = [
    ({"model": "minilm"}, "input", "input: is required"),
    ({"input": "a"}, "model", "model: is required"),
    ({"model": "minilm", "input": ""}, "input", "must not be an empty string"),
    ({"model": "minilm", "input": []}, "input", "not empty"),
    ({"model": "minilm", "input": ["a", ""]}, "input[1]", "must not be an empty string"),
    ({"model": "minilm", "input": ["a"] * 2049}, "input", "at most 2048"),
    ({"model": "minilm", "input": [1, -2]}, "input", "must be a list of token ids"),
    ({"model": "minilm", "input": [1, "a"]}, "input", "must be a list of token ids"),
    ({"model": "minilm", "input": [[1, 2], []]}, "input[1]", "must be a list of token ids"),
    ({"model": "minilm", "input": [[1, 2], "a"]}, "input[1]", "must be a list of token ids"),
    ({"model": "minilm", "input": ["a", [1]]}, "input[1]", "must be a string"),
    ({"model": "mood", "input": "a"}, "model", "does text-classification; embeddings need a model for feature-extr"),
    ({"model": "minilm", "input": [None]}, "input[0]", "must be a string"),
    ({"model": "minilm", "input": {"a": 1}}, "input", "must be a string, token ids, or a list of either"),
    ({"model": "minilm", "input": 4}, "input", "must be a string, token ids, or a list of either"),
    ({"model": "minilm", "input": "a", "encoding_format": "int8"}, "encoding_format", "encoding_format: "),
    ({"model": "minilm", "input": "a", "dimensions": 0}, "dimensions", "dimensions: "),
    ({"model": "minilm", "input": "a", "dimensions": 5}, "dimensions", "the model gives 4"),
    ({"model": "minilm", "input": "a", "dimension": 2}, "dimension", "did you mean 'dimensions'?"),
]


@pytest.mark.parametrize(("body", "param", "message"), BAD)
async def test_bad_requests_name_the_parameter(
    client: httpx.AsyncClient, body: object, param: str, message: str
) -> None:
    response = await client.post(EMBEDDINGS, json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert message in error["message"]
    assert error == {
        "message": error["message"],
        "type": "invalid_request_error",
        "param": param,
        "code": "invalid_input",
    }


async def test_a_model_that_cannot_answer_is_listed_as_not_ready(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [line["ready"] for line in listed["data"] if line["id"] == "broken"] == [False]
    assert (await client.get("/v1/models/broken")).status_code == 503


async def test_lists_and_models_are_kserves_as_well(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).json()["models"].count("mood") == 1
    model = (await client.get("/v1/models/mood")).json()
    assert (model["name"], model["ready"]) == ("mood", True)


@pytest.mark.parametrize(
    ("given", "texts"), [([7, 8], [b"7 8"]), ([[7, 8], [9]], [b"7 8", b"9"]), (["a", "b"], [b"a", b"b"])]
)
async def test_all_forms_of_input(
    client: httpx.AsyncClient, gateway: FakeGateway, given: object, texts: list[bytes]
) -> None:
    response = await client.post(EMBEDDINGS, json={"model": "minilm", "input": given})
    assert len(response.json()["data"]) == len(texts)
    assert gateway.requests[0].inputs["text"].tolist() == texts
    assert gateway.requests[0].params == (
        {} if isinstance(texts[0], bytes) and texts[0].isalpha() else {"token_ids": True}
    )


async def test_the_prefix_where_kserve_has_openais_api(client: httpx.AsyncClient) -> None:
    body = {"model": "minilm", "input": "a"}
    twin, plain = await client.post(f"/openai{EMBEDDINGS}", json=body), await client.post(EMBEDDINGS, json=body)
    assert twin.json() == plain.json()
    assert (await client.get("/openai/v1/models")).json()["object"] == "list"
    assert (await client.get("/openai/v1/nothing")).json()["error"]["code"] == "route_not_found"
