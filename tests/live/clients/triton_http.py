"""tritonclient over HTTP, sync and asyncio, as its own samples use it."""

import ml_dtypes
import numpy as np
from checks import raises, run
from datatypes import ARRAYS, NOTHING, same
from tritonclient import http
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), dtype=np.int32)


def inputs(*, binary: bool = True) -> list[http.InferInput]:
    made = [http.InferInput("INPUT0", [1, 16], "INT32"), http.InferInput("INPUT1", [1, 16], "INT32")]
    for tensor, array in zip(made, (A, B), strict=True):
        tensor.set_data_from_numpy(array, binary_data=binary)
    return made


def check_health_and_metadata(url: str, grpc: str) -> None:
    with http.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("simple")
        assert not client.is_model_ready("nope")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("simple")
        assert [tensor["shape"] for tensor in metadata["inputs"]] == [[-1, 16]] * 2
        config = client.get_model_config("simple")
        assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [16])
        with raises(InferenceServerException, "Request for unknown model"):
            client.get_model_metadata("wrong_model_name")


def check_json_and_binary(url: str, grpc: str) -> None:
    with http.InferenceServerClient(url) as client:
        outputs = [http.InferRequestedOutput("OUTPUT0", True), http.InferRequestedOutput("OUTPUT1", False)]
        for binary in (True, False):
            answer = client.infer(
                "simple", inputs(binary=binary), request_id="7", outputs=outputs, query_params={"test_1": 1}
            )
            assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)
            assert np.array_equal(answer.as_numpy("OUTPUT1"), A - B)
            assert answer.get_response()["id"] == "7"
        assert np.array_equal(client.infer("simple", inputs()).as_numpy("OUTPUT1"), A - B)


def check_compression(url: str, grpc: str) -> None:
    big = np.zeros((1, 100_000), dtype=np.float32)
    tensor = http.InferInput("INPUT0", big.shape, "FP32")
    tensor.set_data_from_numpy(big)
    with http.InferenceServerClient(url) as client:
        for way in ("gzip", "deflate"):
            answer = client.infer(
                "identity_fp32",
                [tensor],
                request_compression_algorithm=way,
                response_compression_algorithm=way,
            )
            assert np.array_equal(answer.as_numpy("OUTPUT0"), big)


def check_strings_and_half_precision(url: str, grpc: str) -> None:
    with http.InferenceServerClient(url) as client:
        words = np.array([["a\x00b", "Grüße 🎈", ""]], dtype=np.object_)
        text = http.InferInput("INPUT0", [1, 3], "BYTES")
        for binary in (True, False):
            text.set_data_from_numpy(words, binary_data=binary)
            back = client.infer("simple_identity", [text]).as_numpy("OUTPUT0")
            assert [element.decode() for element in back[0]] == list(words[0])
        numbers = [http.InferInput(name, [1, 16], "BYTES") for name in ("INPUT0", "INPUT1")]
        for tensor, array in zip(numbers, (A, B), strict=True):
            tensor.set_data_from_numpy(np.array([[str(x) for x in array[0]]], dtype=np.object_))
        sums = client.infer("simple_string", numbers).as_numpy("OUTPUT0")
        assert [int(x) for x in sums[0]] == list((A + B)[0])
        half = http.InferInput("INPUT0", [1, 2], "FP16")
        half.set_data_from_numpy(np.array([[1.5, np.nan]], dtype=np.float16))
        assert np.isnan(client.infer("identity_fp16", [half]).as_numpy("OUTPUT0")[0, 1])


def check_every_datatype_goes_both_ways(url: str, grpc: str) -> None:
    with http.InferenceServerClient(url) as client:
        for datatype, sent in ARRAYS.items():
            model = f"identity_{datatype.lower()}"
            for array in (sent, *(np.empty(shape, sent.dtype) for shape in NOTHING)):
                tensor = http.InferInput("INPUT0", array.shape, datatype)
                tensor.set_data_from_numpy(array)
                assert same(client.infer(model, [tensor]).as_numpy("OUTPUT0"), array), (datatype, array.shape)
            if datatype in ("FP16", "BYTES"):  # JSON has no half precision, and no bytes that are not text
                continue
            plain = np.nan_to_num(sent, nan=1.5, posinf=2.5, neginf=-2.5) if sent.dtype.kind == "f" else sent
            tensor = http.InferInput("INPUT0", plain.shape, datatype)
            tensor.set_data_from_numpy(plain, binary_data=False)
            wanted = [http.InferRequestedOutput("OUTPUT0", binary_data=False)]
            assert same(client.infer(model, [tensor], outputs=wanted).as_numpy("OUTPUT0"), plain), datatype
            if sent.dtype.kind == "f":  # what JSON cannot carry: refused on the way in, null on the way out
                tensor.set_data_from_numpy(sent)
                [output] = client.infer(model, [tensor], outputs=wanted).get_response()["outputs"]
                assert output["data"][:3] == [None] * 3


def check_bf16_is_widened(url: str, grpc: str) -> None:
    tensor = http.InferInput("INPUT0", [1, 2], "BF16")
    tensor.set_data_from_numpy(np.array([[1.5, -2.0]], ml_dtypes.bfloat16))
    with http.InferenceServerClient(url) as client:
        assert client.infer("identity_fp32", [tensor]).as_numpy("OUTPUT0").tolist() == [[1.5, -2.0]]


def check_classification(url: str, grpc: str) -> None:
    tensor = http.InferInput("INPUT0", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.array([[0.5, 2.0, 1.0]], dtype=np.float32))
    with http.InferenceServerClient(url) as client:
        wanted = [http.InferRequestedOutput("OUTPUT0", class_count=2)]
        best = client.infer("identity_fp32", [tensor], outputs=wanted).as_numpy("OUTPUT0")
        assert best.tolist() == [[b"2.000000:1", b"1.000000:2"]]


def check_errors(url: str, grpc: str) -> None:
    with http.InferenceServerClient(url) as client:
        with raises(InferenceServerException, "unknown model"):
            client.infer("nope", inputs())
        with raises(InferenceServerException, "expected 2 inputs but got 1 inputs for model 'simple'"):
            client.infer("simple", inputs()[:1])
        with raises(InferenceServerException, "unexpected inference output 'OUTPUT7'"):
            client.infer("simple", inputs(), outputs=[http.InferRequestedOutput("OUTPUT7")])
        with raises(InferenceServerException, "shared memory is disabled"):
            client.register_system_shared_memory("r", "/r", 64)
        with raises(InferenceServerException, "trace settings cannot be updated"):
            client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
        assert client.get_system_shared_memory_status() == []
        client.unregister_system_shared_memory()
        assert client.get_trace_settings()["trace_level"] == ["OFF"]
        assert client.get_log_settings()["log_info"] is True


def check_statistics_are_true(url: str, grpc: str) -> None:
    with http.InferenceServerClient(url) as client:
        before = client.get_inference_statistics("simple")["model_stats"]
        assert len(before) == 1
        for _ in range(3):
            client.infer("simple", inputs())
        after = client.get_inference_statistics("simple")["model_stats"]
        assert after[0]["inference_count"] - before[0]["inference_count"] == 3
        assert after[0]["inference_stats"]["success"]["count"] - before[0]["inference_stats"]["success"]["count"] == 3
        assert after[0]["execution_count"] > before[0]["execution_count"]


def check_many_at_once(url: str, grpc: str) -> None:
    with http.InferenceServerClient(url, concurrency=8) as client:
        waiting = [client.async_infer("simple", inputs(), request_id=str(i)) for i in range(32)]
        for i, request in enumerate(waiting):
            answer = request.get_result()
            assert answer.get_response()["id"] == str(i)
            assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)


def check_timeouts(url: str, grpc: str) -> None:
    with http.InferenceServerClient(url) as client:
        assert client.infer("simple", inputs(), timeout=20_000_000) is not None
        with raises(InferenceServerException, ""):
            client.infer("simple", inputs(), timeout=1)


def check_model_control(url: str, grpc: str) -> None:
    with http.InferenceServerClient(url) as client:
        names = [line["name"] for line in client.get_model_repository_index()]
        assert "simple" in names
        client.unload_model("simple_string")
        assert not client.is_model_ready("simple_string")
        client.load_model("simple_string")
        assert client.is_model_ready("simple_string")
        client.load_model("simple_int8", config='{"max_batch_size": "16"}')
        assert client.get_model_config("simple_int8")["max_batch_size"] == 16
        client.load_model("simple_int8")
        assert client.get_model_config("simple_int8")["max_batch_size"] == 8
        with raises(InferenceServerException, "failed to load 'simple_int8'"):
            client.load_model("simple_int8", config='{"backend": "onnxruntime"}')
        with raises(InferenceServerException, "failed to load"):
            client.load_model("wrong_model_name")


async def check_asyncio(url: str, grpc: str) -> None:
    async with aio.InferenceServerClient(url) as client:
        assert await client.is_server_ready()
        answer = await client.infer("simple", inputs())
        assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)
        assert (await client.get_model_metadata("simple"))["name"] == "simple"
        with raises(InferenceServerException, "unknown model"):
            await client.infer("nope", inputs())


run(globals())
