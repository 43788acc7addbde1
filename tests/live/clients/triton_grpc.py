"""tritonclient over gRPC, sync and asyncio, streams included, as its own samples use it."""

import json
import queue
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
from checks import raises, run
from datatypes import ARRAYS, NOTHING, same
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), dtype=np.int32)


def inputs() -> list[grpc_client.InferInput]:
    made = [grpc_client.InferInput("INPUT0", [1, 16], "INT32"), grpc_client.InferInput("INPUT1", [1, 16], "INT32")]
    for tensor, array in zip(made, (A, B), strict=True):
        tensor.set_data_from_numpy(array)
    return made


def check_health_and_metadata(url: str, address: str) -> None:
    with grpc_client.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("simple")
        assert not client.is_model_ready("nope")
        assert "statistics" in client.get_server_metadata().extensions
        assert list(client.get_model_metadata("simple").inputs[0].shape) == [-1, 16]
        assert client.get_model_config("simple").config.max_batch_size == 8
        with raises(InferenceServerException, "Request for unknown model"):
            client.get_model_metadata("wrong_model_name")


def check_infer(url: str, address: str) -> None:
    with grpc_client.InferenceServerClient(address) as client:
        answer = client.infer("simple", inputs(), request_id="7")
        assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)
        assert answer.get_response().id == "7"
        for way in ("gzip", "deflate"):
            answer = client.infer("simple", inputs(), compression_algorithm=way)
            assert np.array_equal(answer.as_numpy("OUTPUT1"), A - B)
        words = np.array([["a\x00b", "Grüße 🎈", ""]], dtype=np.object_)
        text = grpc_client.InferInput("INPUT0", [1, 3], "BYTES")
        text.set_data_from_numpy(words)
        back = client.infer("simple_identity", [text]).as_numpy("OUTPUT0")
        assert [element.decode() for element in back[0]] == list(words[0])


def check_every_datatype_goes_both_ways(url: str, address: str) -> None:
    with grpc_client.InferenceServerClient(address) as client:
        for datatype, sent in ARRAYS.items():
            for array in (sent, *(np.empty(shape, sent.dtype) for shape in NOTHING)):
                tensor = grpc_client.InferInput("INPUT0", array.shape, datatype)
                tensor.set_data_from_numpy(array)
                found = client.infer(f"identity_{datatype.lower()}", [tensor]).as_numpy("OUTPUT0")
                assert same(found, array), (datatype, array.shape)


def check_a_request_without_rows_is_refused(url: str, address: str) -> None:
    tensor = grpc_client.InferInput("INPUT0", [0, 4], "FP32")
    tensor.set_data_from_numpy(np.empty((0, 4), np.float32))
    said = raises(InferenceServerException, "INVALID_ARGUMENT", "input 'INPUT0' is empty")
    with grpc_client.InferenceServerClient(address) as client, said:
        client.infer("identity_fp32", [tensor])


def check_messages_beyond_four_mebibytes(url: str, address: str) -> None:
    big = np.random.default_rng(0).random((1, 3 * 2**20), dtype=np.float32)  # 12 MiB
    tensor = grpc_client.InferInput("INPUT0", big.shape, "FP32")
    tensor.set_data_from_numpy(big)
    with grpc_client.InferenceServerClient(address) as client:
        assert np.array_equal(client.infer("identity_fp32", [tensor]).as_numpy("OUTPUT0"), big)


def check_errors_have_statuses(url: str, address: str) -> None:
    with grpc_client.InferenceServerClient(address) as client:
        with raises(InferenceServerException, "NOT_FOUND", "unknown model"):
            client.infer("nope", inputs())
        with raises(InferenceServerException, "INVALID_ARGUMENT", "expected 2 inputs but got 1 inputs"):
            client.infer("simple", inputs()[:1])
        with raises(InferenceServerException, "UNIMPLEMENTED", "shared memory is disabled"):
            client.register_system_shared_memory("r", "/r", 64)
        client.unregister_system_shared_memory()
        assert client.get_trace_settings().settings["trace_level"].value == ["OFF"]


def check_deadlines(url: str, address: str) -> None:
    with grpc_client.InferenceServerClient(address) as client:
        assert client.infer("simple", inputs(), client_timeout=30) is not None
        with raises(InferenceServerException, "DEADLINE_EXCEEDED"):
            client.infer("slow", [slow(1.0)], client_timeout=0.2)
        with raises(InferenceServerException, "DEADLINE_EXCEEDED"):
            client.infer("slow", [slow(1.0)], timeout=1000)


def check_cancellation(url: str, address: str) -> None:
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(address) as client:
        call = client.async_infer("slow", [slow(1.0)], lambda result, error: done.put(error))
        time.sleep(0.1)
        call.cancel()
        error = done.get(timeout=10)
        assert "CANCELLED" in str(error) or "ancelled" in str(error)
        assert client.infer("simple", inputs()) is not None


def slow(value: float) -> grpc_client.InferInput:
    tensor = grpc_client.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.array([value], dtype=np.float32))
    return tensor


def check_statistics_and_repository(url: str, address: str) -> None:
    with grpc_client.InferenceServerClient(address) as client:
        before = client.get_inference_statistics("simple").model_stats[0].inference_count
        client.infer("simple", inputs())
        assert client.get_inference_statistics("simple").model_stats[0].inference_count == before + 1
        assert "simple" in [model.name for model in client.get_model_repository_index().models]
        client.unload_model("simple_string")
        assert not client.is_model_ready("simple_string")
        client.load_model("simple_string")
        assert client.is_model_ready("simple_string")
        client.load_model("simple_int8", config='{"max_batch_size": 16}')
        assert client.get_model_config("simple_int8").config.max_batch_size == 16
        told = client.get_model_config("simple_int8", as_json=True)["config"]
        client.load_model("simple_int8", config=json.dumps({**told, "max_batch_size": 8}))
        assert client.get_model_config("simple_int8").config.max_batch_size == 8
        with raises(InferenceServerException, "failed to load"):
            client.load_model("wrong_model_name")


def check_many_at_once(url: str, address: str) -> None:
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(address) as client:
        for i in range(32):
            client.async_infer("simple", inputs(), lambda result, error: done.put((result, error)), request_id=str(i))
        answers = [done.get(timeout=30) for _ in range(32)]
    assert [error for _, error in answers if error] == []
    assert {result.get_response().id for result, _ in answers} == {str(i) for i in range(32)}


def check_stream(url: str, address: str) -> None:
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: done.put((result, error)))
        for i in range(10):
            client.async_stream_infer("simple" if i != 5 else "nope", inputs(), request_id=str(i))
        answers = [done.get(timeout=30) for _ in range(10)]
        client.stop_stream()
    assert "unknown model" in str(answers[5][1])
    assert [result.get_response().id for result, error in answers if not error] == [str(i) for i in range(10) if i != 5]


def check_stream_with_real_errors(url: str, address: str) -> None:
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: done.put((result, error)), headers={"triton_grpc_error": "true"})
        client.async_stream_infer("nope", inputs())
        _, error = done.get(timeout=30)
        assert "NOT_FOUND" in str(error.status())


async def check_asyncio(url: str, address: str) -> None:
    async with aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        answer = await client.infer("simple", inputs())
        assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for i in range(3):
                yield {"model_name": "simple", "inputs": inputs(), "request_id": str(i)}

        ids = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            ids.append(result.get_response().id)
        assert ids == ["0", "1", "2"]


run(globals())
