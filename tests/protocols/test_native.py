import base64

import httpx
import numpy as np
import pytest
from edge_fakes import FakeGateway

from deployments.types import text_array

PREDICT = "/v1/predict"
LABELS = [{"label": "good", "score": 0.75}, {"label": "bad", "score": 0.25}]


async def test_the_whole_answer(client: httpx.AsyncClient) -> None:
    response = await client.post(PREDICT, json={"model": "minilm", "inputs": ["a", "b"]})
    assert response.status_code == 200
    assert response.json() == {
        "model": "minilm",
        "version": "1",
        "outputs": [[1.0, 0.0, 0.0, 3.0], [2.0, 0.0, 0.0, 3.0]],
        "usage": {"n_items": 2, "n_tokens": 6},
        "timings": {"load_ms": 0.0, "prepare_ms": 1.0, "queue_ms": 2.0, "run_ms": 12.346, "finish_ms": 0.0},
    }


TASKS = [
    ("minilm", "a", {}, [[1.0, 0.0, 0.0, 3.0]]),
    ("mood", "a", {}, [LABELS]),
    ("mood", ["a", "b"], {}, [LABELS, LABELS]),
    ("mood", {"text": "a"}, {}, [LABELS]),
    ("zero", "a", {"candidate_labels": ["good", "bad"]}, [LABELS]),
    ("zero", {"text": "a", "candidate_labels": ["good", "bad"]}, {}, [LABELS]),
    ("mask", "a [MASK]", {}, [[{"score": 0.5, "token": 42, "token_str": "cat", "sequence": "a cat"}]]),
    ("ner", ["Ada"], {}, [[{"entity_group": "PER", "word": "Ada"}]]),
    (
        "rank",
        {"query": "q", "texts": ["bb", "a", "ccc"]},
        {},
        [{"index": 2, "score": 3.0}, {"index": 0, "score": 2.0}, {"index": 1, "score": 1.0}],
    ),
    ("rank", {"query": ["q"], "text": ["a"]}, {}, [{"index": 0, "score": 1.0}]),
    ("photo", base64.b64encode(b"\xff\xd8").decode(), {}, [LABELS]),
    ("adder", [[1, 2]], {}, {"y": [[2.0, 3.0]]}),
    ("adder", {"x": [[1, 2], [3.5, 4]]}, {}, {"y": [[2.0, 3.0], [4.5, 5.0]]}),
    (
        "echo",
        {"n": [1, 2], "f": [[1.5]], "s": "x", "b": True},
        {},
        {"n": [1, 2], "f": [[1.5]], "s": ["x"], "b": [True]},
    ),
]


@pytest.mark.parametrize(("model", "inputs", "parameters", "outputs"), TASKS)
async def test_each_task_answers_in_the_shape_of_its_pipeline(
    client: httpx.AsyncClient, model: str, inputs: object, parameters: object, outputs: object
) -> None:
    response = await client.post(PREDICT, json={"model": model, "inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    assert response.json()["outputs"] == outputs


async def test_images_reach_the_model_decoded(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    await client.post(PREDICT, json={"model": "photo", "inputs": {"image": ["data:image/jpeg;base64,/9g="]}})
    assert list(gateway.requests[0].inputs["image"]) == [b"\xff\xd8"]


async def test_candidate_labels_are_an_input_and_the_rest_stays_a_parameter(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    parameters = {"candidate_labels": "good, bad", "multi_label": True}
    await client.post(PREDICT, json={"model": "zero", "inputs": "a", "parameters": parameters})
    request = gateway.requests[0]
    assert list(request.inputs["candidate_labels"]) == [b"good", b"bad"]
    assert request.params == {"multi_label": True}


async def test_version_and_timeout_are_passed_on(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    body = {"model": "mood", "version": 1, "inputs": "a", "timeout_s": 2.5}
    assert (await client.post(PREDICT, json=body)).json()["version"] == "1"
    assert (gateway.requests[0].version, gateway.requests[0].timeout_s) == ("1", 2.5)


async def test_outputs_that_are_not_those_of_the_task_are_shown_by_name(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    gateway.outputs = {"half": np.array([0.5, np.nan], dtype=np.float16), "word": text_array(["a"])}
    answer = (await client.post(PREDICT, json={"model": "mood", "inputs": "a"})).json()
    assert answer["outputs"] == {"half": [0.5, None], "word": ["a"]}


BAD = [
    ({"inputs": "a"}, 400, "model", "model: is required"),
    ({"model": "minilm"}, 400, "inputs", "inputs: is required"),
    ({"model": "", "inputs": "a"}, 400, "model", "model: "),
    ({"model": 3, "inputs": "a"}, 400, "model", "model: "),
    ({"model": "minilm", "input": "a"}, 400, "inputs", "did you mean 'inputs'?"),
    ({"model": "minilm", "inputs": None}, 400, "inputs", "inputs: must be"),
    ({"model": "minilm", "inputs": []}, 400, "inputs", "inputs: is empty"),
    ({"model": "minilm", "inputs": {}}, 400, "inputs", "missing required input(s) ['text']"),
    ({"model": "minilm", "inputs": {"txt": "a"}}, 400, "inputs", "missing required input(s) ['text']"),
    ({"model": "minilm", "inputs": {"text": "a", "x": "b"}}, 400, "x", "unexpected inference input 'x'"),
    ({"model": "minilm", "inputs": {"text": {"a": 1}}}, 400, "inputs.text", "inputs.text: must be"),
    ({"model": "minilm", "inputs": 5}, 400, "inputs", "BYTES takes strings"),
    ({"model": "minilm", "inputs": ["a", 5]}, 400, "inputs", "element 1 of 'data' is 5"),
    ({"model": "minilm", "inputs": [["a"], ["b"]]}, 400, "text", "Expected [-1], got [2,1]"),
    ({"model": "minilm", "inputs": "a", "timeout_s": 0}, 400, "timeout_s", "timeout_s: "),
    ({"model": "minilm", "inputs": "a", "timeout_s": "1"}, 400, "timeout_s", "timeout_s: "),
    ({"model": "minilm", "inputs": "a", "version": 1.5}, 400, "version", "version: "),
    ({"model": "minilm", "inputs": "a", "parameters": []}, 400, "parameters", "parameters: "),
    ({"model": "rank", "inputs": "a"}, 400, "inputs", "'query' and 'texts'"),
    ({"model": "rank", "inputs": {"query": "q"}}, 400, "inputs", "missing required input(s) ['text']"),
    ({"model": "rank", "inputs": {"query": "q", "text": "a", "texts": "b"}}, 400, "inputs.texts", "give one"),
    ({"model": "rank", "inputs": {"query": ["a", "b"], "texts": "b"}}, 400, "query", "Expected [1], got [2]"),
    ({"model": "zero", "inputs": "a"}, 400, "parameters.candidate_labels", "candidate_labels: is required"),
    (
        {"model": "zero", "inputs": "a", "parameters": {"candidate_labels": []}},
        400,
        "inputs.candidate_labels",
        "inputs.candidate_labels: is empty",
    ),
    (
        {"model": "zero", "inputs": "a", "parameters": {"candidate_labels": [1]}},
        400,
        "inputs.candidate_labels",
        "BYTES takes strings",
    ),
    ({"model": "photo", "inputs": "a photo!"}, 400, "inputs", "element 0 is not base64"),
    ({"model": "adder", "inputs": [[1, 2], [3]]}, 400, "inputs", "Shape does not match"),
    ({"model": "adder", "inputs": "a"}, 400, "inputs", "FP32 takes numbers"),
    ({"model": "echo", "inputs": "a"}, 400, "inputs", "an object by input name"),
    ({"model": "echo", "inputs": {}}, 400, "inputs", "at least one tensor"),
    ({"model": "echo", "inputs": {"a": [1, "b"]}}, 400, "inputs.a", "element 0 of 'data' is 1"),
    ({"model": "nope", "inputs": "a"}, 404, None, "model 'nope' not found"),
    ({"model": "mood", "version": "7", "inputs": "a"}, 404, None, "versions: 1, 2"),
]


@pytest.mark.parametrize(("body", "status", "field", "message"), BAD)
async def test_bad_requests_name_the_field(
    client: httpx.AsyncClient, gateway: FakeGateway, body: object, status: int, field: str | None, message: str
) -> None:
    response = await client.post(PREDICT, json=body)
    error = response.json()["error"]
    assert response.status_code == status
    assert message in error["message"]
    assert error["details"].get("field") == field
    assert set(error) == {"code", "message", "details", "request_id"}
    assert not gateway.requests
