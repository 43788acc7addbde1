"""V1, rerank, classify and score, TEI, moderations: what their clients send and read."""

from typing import Any

import httpx
import numpy as np
import pytest
from edge_fakes import FakeGateway, objects, status

from deployments.types import Datatype, Signature, Task, TensorSpec

V1 = "/v1/models/{}:predict"


async def post(client: httpx.AsyncClient, path: str, body: object) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_v1_one_prediction_an_instance(client: httpx.AsyncClient) -> None:
    answer = await post(client, V1.format("minilm"), {"instances": ["a", "b"]})
    assert answer == {"predictions": [[1.0, 0.0, 0.0, 3.0], [2.0, 0.0, 0.0, 3.0]]}
    assert (await client.get("/")).json() == {"status": "alive"}


async def test_v1_instances_by_name_and_rows_of_several_outputs(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    instances = [{"a": [1, 2], "b": [3, 4]}, {"a": [5, 6], "b": [7, 8]}]
    assert (await post(client, V1.format("echo"), {"instances": instances}))["predictions"] == instances
    assert gateway.requests[0].inputs["a"].tolist() == [[1, 2], [5, 6]]
    alone = await post(client, V1.format("adder"), {"instances": [[1, 2]]})
    assert alone["predictions"] == [[2.0, 3.0]]


async def test_v1_columns_and_parameters(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    body = {"inputs": {"text": ["a"]}, "parameters": {"top_k": 1}}
    answer = await post(client, V1.format("mood:1"), body)
    assert answer["predictions"][0][0] == {"label": "good", "score": 0.75}
    assert gateway.requests[0].params == {"top_k": 1}


BAD_V1 = [
    ({}, "give 'instances'"),
    ({"instances": ["a"], "inputs": ["a"]}, "one of them"),
    ({"instances": []}, "instances: must not be empty"),
    ({"instances": [{"text": "a"}, "b"]}, "instances[1]: must be an object with the same names"),
    ({"instances": [{"text": "a"}, {"texts": "b"}]}, "instances[1]: must be an object with the same names"),
    ({"instances": [{"nope": "a"}]}, "missing required input(s)"),
    ({"instances": [1]}, "BYTES takes strings"),
]


@pytest.mark.parametrize(("body", "message"), BAD_V1)
async def test_v1_bad_requests_are_400(client: httpx.AsyncClient, body: object, message: str) -> None:
    response = await client.post(V1.format("minilm"), json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]


async def test_v1_outputs_without_a_row_an_instance_are_refused(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    gateway.outputs = {"y": np.zeros(3, np.float32)}
    response = await client.post(V1.format("echo"), json={"instances": [{"a": 1}]})
    assert response.status_code == 400
    assert "gives no row of output 'y'" in response.json()["error"]


DOCUMENTS = ["aa", {"text": "cccc"}, "b"]


async def test_cohere_v2(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    body = {"model": "rank", "query": "q", "documents": DOCUMENTS, "top_n": 2, "max_tokens_per_doc": 100}
    answer = await post(client, "/v2/rerank", body)
    assert answer["results"] == [{"index": 1, "relevance_score": 4.0}, {"index": 0, "relevance_score": 2.0}]
    assert answer["meta"] == {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    assert gateway.requests[0].params == {"truncate": True}


async def test_cohere_v1_jina_and_vllm(client: httpx.AsyncClient) -> None:
    for path in ("/v1/rerank", "/rerank"):
        answer = await post(client, path, {"query": "q", "documents": DOCUMENTS})
        assert [line["document"]["text"] for line in answer["results"]] == ["cccc", "aa", "b"]
        assert answer["usage"]["total_tokens"] > 0
    body = {"query": "q", "documents": [{"a": "x", "b": "y"}], "rank_fields": ["a", "b"], "return_documents": False}
    assert (await post(client, "/v1/rerank", body))["results"] == [{"index": 0, "relevance_score": 3.0}]


BAD_RERANK = [
    ({"query": "q"}, "documents: is required"),
    ({"query": "q", "documents": []}, "documents: has 0"),
    ({"query": "q", "documents": [1]}, "documents[0]: must be a string"),
    ({"query": "q", "documents": [{"body": "a"}]}, "documents[0].text: must be a string"),
    ({"query": "q", "documents": ["a"], "model": "minilm"}, "rerank requests need a model for text-ranking"),
    ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n: "),
]


@pytest.mark.parametrize(("body", "message"), BAD_RERANK)
async def test_bad_rerank_requests_are_400(client: httpx.AsyncClient, body: object, message: str) -> None:
    response = await client.post("/v2/rerank", json=body)
    assert response.status_code == 400
    assert message in response.json()["message"]


async def test_a_model_is_named_where_there_are_several(client: httpx.AsyncClient) -> None:
    response = await client.post("/classify", json={"input": "a"})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "model: is required, there are several: mood, guard"


async def test_classify_as_vllm_and_as_infinity(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    known = Signature((TensorSpec("text", Datatype.BYTES, (-1,)),), ())
    gateway.models._models += (status("known", Task.TEXT_CLASSIFICATION, known, labels=("bad", "good")),)
    vllm = await post(client, "/classify", {"model": "known", "input": ["a", "b"]})
    assert vllm["data"][1] == {"index": 1, "label": "good", "probs": [0.25, 0.75], "num_classes": 2}
    infinity = await post(client, "/classify", {"model": "known", "input": ["a"], "raw_scores": False})
    assert infinity["object"] == "classify"
    assert infinity["data"] == [[{"score": 0.75, "label": "good"}, {"score": 0.25, "label": "bad"}]]


async def test_score(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    for path in ("/score", "/v1/score"):
        answer = await post(client, path, {"model": "rank", "text_1": "q", "text_2": ["aa", "b"]})
        assert [line["score"] for line in answer["data"]] == [2.0, 1.0]
    pairs = await post(client, "/score", {"model": "rank", "text_1": ["a", "b"], "text_2": ["cc", "d"]})
    assert [line["score"] for line in pairs["data"]] == [2.0, 1.0]
    assert gateway.requests[-1].inputs["queries"].tolist() == [b"a", b"b"]
    for texts in ("c", ["c", "d", "e"]):
        refused = await client.post("/score", json={"model": "rank", "text_1": ["a", "b"], "text_2": texts})
        assert refused.status_code == 400
        assert "text_1: has 2 texts" in refused.json()["error"]["message"]


async def test_tei(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    assert await post(client, "/embed", {"inputs": "a"}) == [[1.0, 0.0, 0.0, 3.0]]
    assert gateway.requests[-1].params == {"normalize": True}
    ranks = await post(client, "/rerank", {"query": "q", "texts": ["aa", "cccc"], "return_text": True})
    assert ranks[0] == {"index": 1, "score": 4.0, "text": "cccc"}
    gateway.outputs = {"embedding": np.array([[1, 0], [0.5, 0.5], [0, 1]], np.float32)}
    body = {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}}
    assert await post(client, "/similarity", body) == [0.5, 0.0]
    assert (await client.get("/info")).json()["model_type"] == {"embedding": {"pooling": None}}


@pytest.mark.parametrize(
    ("inputs", "texts", "pairs", "is_batch"),
    [
        ("a", [b"a"], None, False),
        (["a", "b"], [b"a"], [b"b"], False),
        ([["a"], ["b"]], [b"a", b"b"], None, True),
        ([["a", "x"], ["b", "y"]], [b"a", b"b"], [b"x", b"y"], True),
    ],
)
async def test_tei_predict_reads_texts_and_pairs(
    client: httpx.AsyncClient,
    gateway: FakeGateway,
    inputs: object,
    texts: list[bytes],
    pairs: list[bytes] | None,
    is_batch: bool,
) -> None:
    answer = await post(client, "/predict", {"model": "mood", "inputs": inputs, "raw_scores": True})
    given = gateway.requests[0].inputs
    assert given["text"].tolist() == texts
    assert ("text_pair" in given) == (pairs is not None)
    if pairs is not None:
        assert given["text_pair"].tolist() == pairs
    assert isinstance(answer[0], list if is_batch else dict)
    assert gateway.requests[0].params == {"function_to_apply": "none"}


@pytest.mark.parametrize("inputs", [[], "", [["a"], ["b", "c"]], [["a", "b", "c"]], ["a", "b", "c"], [[1]], 4])
async def test_tei_predict_refuses_what_is_neither(client: httpx.AsyncClient, inputs: object) -> None:
    response = await client.post("/predict", json={"model": "mood", "inputs": inputs})
    assert response.status_code == 422
    assert response.json()["error_type"] == "Validation"


async def test_moderations_judge_by_the_entrys_map(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.outputs = {
        "label": objects([["bad", "other"], ["good", "bad"]]),
        "score": np.array([[0.9, 0.1], [0.4, 0.2]]),
    }
    for model in ({"model": "guard"}, {"model": "omni-moderation-latest"}, {}):
        answer = await post(client, "/v1/moderations", {**model, "input": ["a", "b"]})
        first, second = answer["results"]
        assert len(first["categories"]) == 13
        assert (first["flagged"], first["categories"]["hate"], first["category_scores"]["hate"]) == (True, True, 0.9)
        assert (second["flagged"], second["category_scores"]["violence/graphic"]) == (False, 0.4)


async def test_moderations_take_text_parts_and_refuse_the_rest(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert len((await post(client, "/v1/moderations", {"input": parts}))["results"]) == 1
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    for body in ({"input": image}, {"input": []}, {"input": [1]}, {"input": "a", "model": "mood"}):
        assert (await client.post("/v1/moderations", json=body)).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "minilm", "input": "a", "user": "ada"}),
        ("/v1/completions", {"model": "smollm2", "prompt": "a", "user": "ada"}),
        ("/v1/chat/completions", {"model": "smollm2", "messages": [{"role": "user", "content": "a"}], "user": "ada"}),
        (
            "/v1/chat/completions",
            {"model": "smollm2", "messages": [{"role": "user", "content": "a"}], "safety_identifier": "ada"},
        ),
        ("/v1/responses", {"model": "smollm2", "input": "a", "user": "ada"}),
    ],
)
async def test_whom_a_caller_asks_for_reaches_the_gateway(
    client: httpx.AsyncClient, gateway: FakeGateway, path: str, body: dict[str, object]
) -> None:
    """An alias may be sticky by it."""
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert gateway.requests[-1].user == "ada"
