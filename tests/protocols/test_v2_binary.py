"""Triton's binary_tensor_data over REST: tensors behind the JSON, raw-binary bodies, classification."""

import contextlib
import struct
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from edge_fakes import FakeGateway, objects, status
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deployments.errors import InvalidInput
from deployments.types import NUMPY_DTYPES, Array, Datatype, Signature, Task, TensorSpec
from serve_app.protocols.v2_binary import from_bytes, to_bytes

HEADER = "Inference-Header-Content-Length"
ECHO = "/v2/models/echo/infer"
NUMERIC = [datatype for datatype in Datatype if datatype is not Datatype.BYTES]


def request_of(tensors: dict[str, Array], **fields: Any) -> tuple[bytes, dict[str, str]]:
    """Return a body with every tensor in binary, and its headers."""
    tails = [to_bytes(array) for array in tensors.values()]
    names = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
    inputs = [
        {"name": n, "shape": a.shape, "datatype": names[a.dtype], "parameters": {"binary_data_size": len(tail)}}
        for (n, a), tail in zip(tensors.items(), tails, strict=True)
    ]
    head = orjson.dumps({"inputs": inputs, **fields})
    return b"".join([head, *tails]), {HEADER: str(len(head))}


def parts_of(response: httpx.Response) -> tuple[dict[str, Any], bytes]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers[HEADER])
    return orjson.loads(response.content[:size]), response.content[size:]


@pytest.mark.parametrize("datatype", NUMERIC)
async def test_every_numeric_datatype_goes_both_ways(client: httpx.AsyncClient, datatype: Datatype) -> None:
    array = np.array([[0, 1, 2], [3, 4, 127]]).astype(NUMPY_DTYPES[datatype])
    body, headers = request_of({"x": array}, parameters={"binary_data_output": True}, id="7")
    answer, tail = parts_of(await client.post(ECHO, content=body, headers=headers))
    assert answer["id"] == "7"
    [output] = answer["outputs"]
    size = array.nbytes
    assert output == {"name": "x", "datatype": datatype, "shape": [2, 3], "parameters": {"binary_data_size": size}}
    assert np.array_equal(np.frombuffer(tail, array.dtype).reshape(2, 3), array)


async def test_bytes_with_nul_and_unicode_and_nothing_go_both_ways(client: httpx.AsyncClient) -> None:
    elements = [b"a\x00b", "Grüße 🎈".encode(), b"", b"\xff\xfe"]
    array = np.array(elements, dtype=np.object_)
    body, headers = request_of({"s": array}, outputs=[{"name": "s", "parameters": {"binary_data": True}}])
    _, tail = parts_of(await client.post(ECHO, content=body, headers=headers))
    assert tail == b"".join(struct.pack("<I", len(e)) + e for e in elements)


async def test_bytes_carry_nan_and_infinities(client: httpx.AsyncClient) -> None:
    array = np.array([np.nan, np.inf, -np.inf], dtype=np.float32)
    body, headers = request_of({"x": array}, parameters={"binary_data_output": True})
    _, tail = parts_of(await client.post(ECHO, content=body, headers=headers))
    assert tail == array.tobytes()


async def test_bf16_is_widened_to_fp32(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    data = struct.pack("<3H", 0x3F80, 0xC040, 0x7F80)
    tensor = {"name": "x", "shape": [3], "datatype": "BF16", "parameters": {"binary_data_size": len(data)}}
    head = orjson.dumps({"inputs": [tensor]})
    response = await client.post(ECHO, content=head + data, headers={HEADER: str(len(head))})
    assert response.status_code == 200
    assert gateway.requests[0].inputs["x"].dtype == np.float32
    assert gateway.requests[0].inputs["x"].tolist() == [1.0, -3.0, np.inf]


async def test_json_and_binary_mix_in_one_request_and_in_one_answer(client: httpx.AsyncClient) -> None:
    a, b = np.array([1, 2], dtype=np.int32), np.array([3.5], dtype=np.float16)
    head = orjson.dumps(
        {
            "inputs": [
                {"name": "a", "shape": [2], "datatype": "INT32", "data": [1, 2]},
                {"name": "b", "shape": [1], "datatype": "FP16", "parameters": {"binary_data_size": 2}},
            ],
            "outputs": [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}],
        }
    )
    response = await client.post(ECHO, content=head + b.tobytes(), headers={HEADER: str(len(head))})
    answer, tail = parts_of(response)
    assert tail == b.tobytes()
    assert [output["name"] for output in answer["outputs"]] == ["b", "a"]
    assert answer["outputs"][1]["data"] == a.tolist()


async def test_a_binary_answer_without_a_byte_is_json(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.outputs = {"y": np.zeros((0, 4), dtype=np.float32)}
    body, headers = request_of({"x": np.ones(1, np.float32)}, parameters={"binary_data_output": True})
    response = await client.post(ECHO, content=body, headers=headers)
    assert response.headers["content-type"] == "application/json"
    assert HEADER not in response.headers
    assert response.json()["outputs"][0]["parameters"] == {"binary_data_size": 0}


HEADERS = [
    ("x", "Unable to parse Inference-Header-Content-Length, got: x"),
    ("-1", "Unable to parse Inference-Header-Content-Length, got: -1"),
    ("9" * 40, "Unable to parse Inference-Header-Content-Length, got: 9"),
    ("100000", "inference header size should be in range (0, "),
    ("10", "body: is not JSON"),
]


@pytest.mark.parametrize(("value", "message"), HEADERS)
async def test_wrong_headers_are_400(client: httpx.AsyncClient, value: str, message: str) -> None:
    body, _ = request_of({"x": np.ones(3, np.float32)})
    response = await client.post(ECHO, content=body, headers={HEADER: value})
    assert response.status_code == 400
    assert message in response.json()["error"]


async def test_too_few_and_too_many_bytes_are_400(client: httpx.AsyncClient) -> None:
    body, headers = request_of({"x": np.ones(3, np.float32)})
    short = await client.post(ECHO, content=body[:-3], headers=headers)
    long = await client.post(ECHO, content=body + b"..", headers=headers)
    assert (short.status_code, long.status_code) == (400, 400)
    assert "unexpected size for input 'x', expecting 3 additional bytes for model 'echo'" in short.json()["error"]
    assert "unexpected additional input data for model 'echo'" in long.json()["error"]


BAD = [
    ("FP32", [2], b"1234", "shape [2] needs 8 bytes, got 4 bytes"),
    ("FP32", [0], b"1234", "shape [0] needs 0 bytes, got 4 bytes"),
    ("BF16", [1], b"1", "shape [1] needs 2 bytes, got 1 bytes"),
    ("BYTES", [1], b"12", "needs 4 bytes of length before each element, got 2 bytes"),
    ("BYTES", [1], struct.pack("<I", 9) + b"abc", "needs 9 bytes of element 0, got 3 bytes"),
    ("BYTES", [1], struct.pack("<I", 2**32 - 1), "needs 4294967295 bytes of element 0, got 0 bytes"),
    ("BYTES", [2], struct.pack("<I", 1) + b"a", "expected 2 strings for input 'x' of shape [2], got 1"),
    ("FP32", [2**62, 2**62], b"", "exceed maximum size"),
    ("FP32", [-1], b"", "negative size"),
]


@pytest.mark.parametrize(("datatype", "shape", "data", "message"), BAD)
def test_bytes_that_do_not_fit_are_refused(datatype: str, shape: list[int], data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        from_bytes("x", datatype, shape, memoryview(data))
    assert message in caught.value.message


@given(st.sampled_from(NUMERIC).flatmap(lambda t: hnp.arrays(NUMPY_DTYPES[t], hnp.array_shapes(min_side=0))))
def test_numbers_survive_the_way_through_bytes(array: Array) -> None:
    names = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
    back = from_bytes("x", names[array.dtype], array.shape, memoryview(to_bytes(array)))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


@given(st.lists(st.binary(max_size=20)), st.binary(max_size=30))
def test_strings_survive_and_noise_never_does_worse_than_400(elements: list[bytes], noise: bytes) -> None:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    back = from_bytes("x", "BYTES", array.shape, memoryview(to_bytes(array)))
    assert back.tolist() == elements
    with contextlib.suppress(InvalidInput):
        from_bytes("x", "BYTES", [1], memoryview(noise))


async def test_raw_binary_numbers_are_one_batch(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    data = np.array([1, 2], dtype=np.float32).tobytes()
    answer, tail = parts_of(await client.post("/v2/models/adder/infer", content=data, headers={HEADER: "0"}))
    assert gateway.requests[0].inputs["x"].tolist() == [[1.0, 2.0]]
    assert answer["outputs"][0]["shape"] == [1, 2]
    assert np.frombuffer(tail, np.float32).tolist() == [2.0, 3.0]


async def test_raw_binary_text_is_one_element(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    response = await client.post("/v2/models/minilm/infer", content=b"any text", headers={HEADER: "0"})
    assert response.status_code == 200
    assert gateway.requests[0].inputs["text"].tolist() == [b"any text"]


async def test_raw_binary_needs_one_input_whose_shape_can_be_told(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    async def error(model: str) -> str:
        response = await client.post(f"/v2/models/{model}/infer", content=b"1234", headers={HEADER: "0"})
        assert response.status_code == 400
        return str(response.json()["error"])

    free = Signature((TensorSpec("x", Datatype.FP32, (2, -1, -1)),), ())
    words = Signature((TensorSpec("x", Datatype.BYTES, (-1, 3)),), ())
    gateway.models._models += (status("free", Task.TENSOR, free), status("words", Task.CUSTOM, words))
    assert "can not be deduced because there are more than one variable-sized dimension" in await error("free")
    assert "the model must have input shape [1]" in await error("words")
    assert "Raw request must only have 1 input (found 1) to be deduced but got 3 inputs in 'rank'" in await error(
        "rank"
    )
    assert "needs 8 bytes, got 4 bytes" in await error("adder")


async def test_classification_names_the_best_classes(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    logits = Signature((TensorSpec("x", Datatype.FP32, (-1, 2)),), (TensorSpec("y", Datatype.FP32, (-1, 3)),))
    gateway.models._models += (status("classes", Task.CUSTOM, logits, labels=("cat", "dog")),)
    gateway.outputs = {"y": np.array([[0.25, 0.5, 0.125], [3, 1, 2]], dtype=np.float32)}
    x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    body = {"inputs": [x], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}
    [output] = (await client.post("/v2/models/classes/infer", json=body)).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == ["0.500000:1:dog", "0.250000:0:cat", "3.000000:0:cat", "2.000000:2"]


async def test_classification_of_sorted_scores_takes_the_label_beside_them(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    label, score = (TensorSpec(n, t, (-1, -1)) for n, t in (("label", Datatype.BYTES), ("score", Datatype.FP32)))
    text = TensorSpec("text", Datatype.BYTES, (-1,))
    known = status("known", Task.TEXT_CLASSIFICATION, Signature((text,), (label, score)), labels=("bad", "good"))
    gateway.models._models += (known,)
    gateway.outputs = {"label": objects([["good", "bad"]]), "score": np.array([[0.75, 0.25]], dtype=np.float32)}
    body = {
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}],
        "outputs": [{"name": "score", "parameters": {"classification": 1}}],
    }
    [output] = (await client.post("/v2/models/known/infer", json=body)).json()["outputs"]
    assert output["data"] == ["0.750000:1:good"]
    assert gateway.requests[0].outputs is None


async def test_only_rows_of_numbers_can_be_classified(client: httpx.AsyncClient) -> None:
    s = {"name": "s", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    body = {"inputs": [s], "outputs": [{"name": "s", "parameters": {"classification": 1}}]}
    response = await client.post(ECHO, json=body)
    assert response.status_code == 400
    assert "cannot be classified" in response.json()["error"]
