import httpx
import numpy as np
import pytest
from edge_fakes import FakeGateway

INFER = "/v2/models/minilm/infer"
TEXT = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}
X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


def with_(**fields: object) -> dict[str, object]:
    return {"inputs": [TEXT], **fields}


def tensor(**fields: object) -> dict[str, object]:
    return {"inputs": [{**X, **fields}]}


async def test_infer_answers_flat_typed_tensors(client: httpx.AsyncClient) -> None:
    response = await client.post(INFER, json=with_(id="r1"))
    assert response.status_code == 200
    assert response.json() == {
        "model_name": "minilm",
        "model_version": "1",
        "id": "r1",
        "outputs": [
            {"name": "embedding", "datatype": "FP32", "shape": [2, 4], "data": [1.0, 0.0, 0.0, 3.0, 2.0, 0.0, 0.0, 3.0]}
        ],
    }


async def test_id_is_left_out_where_none_was_sent(client: httpx.AsyncClient) -> None:
    assert "id" not in (await client.post(INFER, json=with_())).json()


@pytest.mark.parametrize(
    ("path", "body", "version"),
    [
        ("/v2/models/mood/infer", with_(), "2"),
        ("/v2/models/mood/versions/1/infer", with_(), "1"),
        ("/v2/models/mood:1/infer", with_(), "1"),
        ("/v2/predict", with_(model="mood"), "2"),
        ("/v2/predict", with_(model="mood", version="1"), "1"),
        ("/v2/predict/", with_(model="mood", version=1), "1"),
    ],
)
async def test_every_path_reaches_the_version_it_names(
    client: httpx.AsyncClient, path: str, body: object, version: str
) -> None:
    answer = (await client.post(path, json=body)).json()
    assert (answer["model_name"], answer["model_version"]) == ("mood", version)
    assert answer["outputs"][0]["data"] == ["good", "bad", "good", "bad"]


async def test_parameters_reach_the_model_without_the_reserved_ones(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    given = {"timeout": 1_500_000, "binary_data_output": True, "priority": 1, "top_k": 2, "raw": False}
    await client.post(INFER, json=with_(parameters=given))
    assert gateway.requests[0].params == {"top_k": 2, "raw": False}
    assert gateway.requests[0].timeout_s == 1.5


async def test_kserves_client_may_say_the_model_again(client: httpx.AsyncClient) -> None:
    assert (await client.post(INFER, json=with_(model_name="minilm", model_version=None))).status_code == 200


async def test_timeout_zero_means_the_models_own(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    await client.post(INFER, json=with_(parameters={"timeout": 0}))
    assert gateway.requests[0].timeout_s is None


async def test_only_requested_outputs_are_sent_in_the_order_asked(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    wanted = [{"name": "score", "parameters": {"binary_data": False}}, {"name": "label"}]
    answer = (await client.post("/v2/models/mood/infer", json=with_(outputs=wanted))).json()
    assert [output["name"] for output in answer["outputs"]] == ["score", "label"]
    assert gateway.requests[0].outputs == ("score", "label")
    one = (await client.post("/v2/models/mood/infer", json=with_(outputs=wanted[:1]))).json()
    assert [output["name"] for output in one["outputs"]] == ["score"]


async def test_an_output_that_only_the_answer_shows_to_be_missing_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post("/v2/models/echo/infer", json={"inputs": [X], "outputs": [{"name": "nope"}]})
    assert response.status_code == 400
    assert "unexpected inference output 'nope' for model 'echo'" in response.json()["error"]


async def test_numbers_that_json_cannot_carry_are_null(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.outputs = {"y": np.array([np.nan, np.inf, -np.inf, 1.5], dtype=np.float32)}
    answer = (await client.post("/v2/models/adder/infer", json=tensor())).json()
    assert answer["outputs"][0]["data"] == [None, None, None, 1.5]


async def test_an_output_that_is_not_contiguous_is_row_major(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.outputs = {"y": np.arange(6, dtype=np.int64).reshape(2, 3).T}
    answer = (await client.post("/v2/models/adder/infer", json=tensor())).json()
    assert answer["outputs"][0] == {"name": "y", "datatype": "INT64", "shape": [3, 2], "data": [0, 3, 1, 4, 2, 5]}


async def test_bytes_that_are_not_text_travel_as_base64_both_ways(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["/9g="]}
    body = {"inputs": [{**image, "parameters": {"content_type": "base64"}}]}
    answer = (await client.post("/v2/models/echo/infer", json=body)).json()
    assert gateway.requests[0].inputs["image"][0] == b"\xff\xd8"
    assert answer["outputs"][0] == {**image, "parameters": {"content_type": "base64"}}


async def test_fp16_outputs_are_refused_in_json(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.outputs = {"y": np.zeros(1, dtype=np.float16)}
    response = await client.post("/v2/models/adder/infer", json=tensor())
    assert response.status_code == 400
    assert "sending FP16 data via JSON is not supported" in response.json()["error"]


BAD = [
    ({}, "inputs: is required"),
    ([], "body: must be a JSON object, got an array"),
    ({"inputs": []}, "inputs: "),
    ({"inputs": {}}, "inputs: "),
    ({"inputs": None}, "inputs: "),
    (with_(id=7), "id: "),
    (with_(output=[]), "output: is not a known field; did you mean 'outputs'?"),
    (with_(model="minilm"), "model: is not a known field"),
    ({"inputs": [{k: v for k, v in TEXT.items() if k != "name"}]}, "inputs[0].name: is required"),
    ({"inputs": [{k: v for k, v in TEXT.items() if k != "shape"}]}, "inputs[0].shape: is required"),
    ({"inputs": [{**TEXT, "datatype": "STRING"}]}, "inputs[0].datatype: "),
    ({"inputs": [{**TEXT, "datatype": 3}]}, "inputs[0].datatype: "),
    ({"inputs": [{**TEXT, "shape": [-1]}]}, "inputs[0].shape[0]: "),
    ({"inputs": [{**TEXT, "shape": [2.0]}]}, "inputs[0].shape[0]: "),
    ({"inputs": [{**TEXT, "shape": [True]}]}, "inputs[0].shape[0]: "),
    ({"inputs": [{**TEXT, "shape": 2}]}, "inputs[0].shape: "),
    ({"inputs": [{**TEXT, "data": None}]}, "'data'"),
    ({"inputs": [{**TEXT, "data": "ab"}]}, "'data' must be an array"),
    ({"inputs": [TEXT, TEXT]}, "input 'text' already exists in request"),
    ({"inputs": [TEXT, {**TEXT, "name": "a"}]}, "unexpected inference input 'a' for model 'minilm'"),
    ({"inputs": [{**TEXT, "name": "a"}]}, "missing required input(s) ['text']"),
    ({"inputs": [{**TEXT, "shape": [2, 1]}]}, "unexpected shape for input 'text' for model 'minilm'. Expected [-1]"),
    ({"inputs": [{**TEXT, "shape": [3]}]}, "Shape does not match true shape of 'data' field"),
    ({"inputs": [{**TEXT, "shape": [0], "data": []}]}, "input 'text' is empty"),
    ({"inputs": [{**TEXT, "shape": [2**62, 2**62]}]}, "exceed maximum size of 9223372036854775807"),
    ({"inputs": [{**TEXT, "shape": [0, 2**62], "data": []}]}, "exceed maximum size"),
    ({"inputs": [{**TEXT, "shape": [1] * 33}]}, "at most 32"),
    ({"inputs": [{**TEXT, "data": ["a", 1]}]}, "BYTES takes strings; element 1 of 'data' is 1"),
    (
        {"inputs": [{**TEXT, "datatype": "INT32", "data": [1, 2]}]},
        "inference input 'text' data-type is 'INT32', but model 'minilm' expects 'BYTES'",
    ),
    ({"inputs": [{**X, "datatype": "FP16"}]}, "receiving FP16 data via JSON is not supported"),
    ({"inputs": [{**TEXT, "parameters": {"binary_data_size": 4}}]}, "But set 'data' 'binary_data_size'"),
    ({"inputs": [{**TEXT, "data": None, "parameters": {"binary_data_size": 4}}]}, "must specify valid 'Inference-H"),
    ({"inputs": [{**TEXT, "data": None, "parameters": {"binary_data_size": -1}}]}, "must be a whole number of bytes"),
    ({"inputs": [{**TEXT, "data": None, "parameters": {"binary_data_size": None}}]}, "must be a whole number of bytes"),
    ({"inputs": [{**TEXT, "data": None, "parameters": {"shared_memory_region": "r"}}]}, "shared memory is disabled"),
    ({"inputs": [{**X, "datatype": "BF16"}]}, "receiving BF16 data via JSON is not supported"),
    (with_(parameters={"binary_data_output": 1}), "parameters.binary_data_output: must be true or false"),
    (with_(outputs=[{"name": "embedding", "parameters": {"binary_data": 1}}]), "binary_data: must be true or false"),
    (with_(outputs=[{"name": "embedding", "parameters": {"shared_memory_region": "r"}}]), "memory is disabled"),
    (with_(outputs=[{"name": "nope"}]), "unexpected inference output 'nope' for model 'minilm'"),
    (with_(outputs=[{"name": "embedding"}] * 2), "output 'embedding' already exists in request"),
    (with_(outputs=[{"name": "embedding", "parameters": {"classification": 0}}]), "classification: must be a whole"),
    (with_(outputs=[{"name": "embedding", "parameters": {"classification": True}}]), "classification: must be a whole"),
    (with_(outputs=[{}]), "outputs[0].name: is required"),
    (with_(parameters={"timeout": -1}), "parameters.timeout: "),
    (with_(parameters={"timeout": "1"}), "parameters.timeout: "),
    (with_(parameters={"timeout": True}), "parameters.timeout: "),
    (with_(parameters={"timeout": 1.5}), "parameters.timeout: "),
    (with_(parameters={"sequence_id": 4}), "parameters.sequence_id: "),
    (with_(parameters={"triton_x": 1}), "parameter keys starting with 'triton_' are reserved"),
    (with_(parameters={"a": [1]}), "parameters.a: must be a string, a number or a boolean"),
    (with_(parameters=[1]), "parameters: "),
]


@pytest.mark.parametrize(("body", "message"), BAD)
async def test_bad_bodies_are_400_and_name_the_field(client: httpx.AsyncClient, body: object, message: str) -> None:
    response = await client.post(INFER, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]
    assert response.json()["details"]["field"]


BAD_DATA = [
    ({"data": [[1, 2], [3, 4]]}, "Shape does not match"),
    ({"data": [[1], [2]]}, "Shape does not match"),
    ({"data": [[1, 2, 3]]}, "Shape does not match"),
    ({"data": [[[1], [2]]]}, "Shape does not match"),
    ({"data": [1, [2]]}, "Shape does not match"),
    ({"data": [1]}, "Shape does not match"),
    ({"data": ["1", 2]}, "FP32 takes numbers; element 0 of 'data' is a string"),
    ({"data": [1, None]}, "element 1 of 'data' is null"),
    ({"data": [True, 2]}, "element 0 of 'data' is a boolean"),
    ({"data": [1, {}]}, "element 1 of 'data' is an object"),
    ({"data": [1e39, 0]}, "out of range for FP32"),
    ({"datatype": "UINT8", "data": [1, 256]}, "out of range for UINT8"),
    ({"datatype": "UINT8", "data": [1, -1]}, "out of range for UINT8"),
    ({"datatype": "INT64", "data": [1, 2**63]}, "out of range for INT64"),
    ({"datatype": "INT64", "data": [1, 2.0]}, "INT64 takes integers; element 1"),
    ({"datatype": "BOOL", "data": [1, 0]}, "BOOL takes JSON booleans"),
    ({"datatype": "FP64"}, "data-type is 'FP64', but model 'adder' expects 'FP32'"),
    ({"shape": [1, 3], "data": [1, 2, 3]}, "Expected [-1,2], got [1,3]"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_DATA)
async def test_bad_data_is_400_and_says_what_is_wrong(
    client: httpx.AsyncClient, fields: dict[str, object], message: str
) -> None:
    response = await client.post("/v2/models/adder/infer", json=tensor(**fields))
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize("data", [[1, 2], [[1, 2]], [[1.0, 2]]])
async def test_data_may_be_nested_or_flat(client: httpx.AsyncClient, data: object) -> None:
    answer = (await client.post("/v2/models/adder/infer", json=tensor(data=data))).json()
    assert answer["outputs"][0]["data"] == [2.0, 3.0]


async def test_unknown_models_are_404_with_the_words_tritons_clients_look_for(client: httpx.AsyncClient) -> None:
    for path in ("/v2/models/nope/infer", "/v2/models/mood/versions/9/infer"):
        response = await client.post(path, json=with_())
        assert response.status_code == 404
        assert response.json()["error"].startswith("Request for unknown model: ")
    assert "versions: 1, 2" in response.json()["error"]


async def test_metadata_tells_what_a_model_takes_and_gives(client: httpx.AsyncClient) -> None:
    expected = {
        "name": "mood",
        "versions": ["1", "2"],
        "platform": "pytorch",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "score", "datatype": "FP32", "shape": [-1, -1]},
        ],
        "properties": {"task": "text-classification", "version": "2", "state": "READY"},
    }
    assert (await client.get("/v2/models/mood")).json() == expected
    older = (await client.get("/v2/models/mood/versions/1")).json()
    assert older["properties"]["version"] == "1"


async def test_server_metadata_and_model_names(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    server = (await client.get("/v2")).json()
    assert server["name"] == "model-endpoint"
    assert set(server) == {"name", "version", "extensions"}
    gateway.models.server_name = "triton"
    assert (await client.get("/v2")).json()["name"] == "triton"
    names = (await client.get("/v2/models")).json()["models"]
    assert names.count("mood") == 1


async def test_health_follows_readiness(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    assert (await client.get("/v2/health/ready")).json() == {"ready": True, "live": True}
    gateway.models.waiting = {"minilm:1": "LOADING"}
    live, ready = await client.get("/v2/health/live"), await client.get("/v2/health/ready")
    assert (live.status_code, live.json()) == (200, {"live": True, "ready": False})
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    assert "minilm:1: LOADING" in ready.json()["error"]


async def test_model_readiness(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/models/mood/ready")).json() == {"name": "mood", "ready": True}
    assert (await client.get("/v2/models/mood/versions/1/ready")).status_code == 200
    broken = await client.get("/v2/models/broken/ready")
    assert broken.status_code == 503
    assert broken.json()["error"] == "'broken' version 1 is not at ready state: no such file"
    assert (await client.get("/v2/models/nope/ready")).status_code == 404
