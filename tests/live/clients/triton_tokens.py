"""tritonclient over gRPC with a model that generates: its text streams in pieces, and ends when nobody wants it."""

import asyncio
import queue
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
from checks import run
from tritonclient.grpc import aio

MODEL = "tiny"
HEADERS = {"application": "endpoint"}  # HAProxy asks for it while another application with a door is there, or drains


def prompt(*texts: str) -> list[grpc_client.InferInput]:
    tensor = grpc_client.InferInput("text", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=np.object_))
    return [tensor]


def wish(max_tokens: int, **more: Any) -> dict[str, Any]:
    return {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, **more}


def text_of(result: grpc_client.InferResult) -> str:
    return b"".join(result.as_numpy("text")).decode()


def check_a_stream_of_tokens_is_the_whole_text(url: str, address: str) -> None:
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: done.put((result, error)), headers=HEADERS)
        for words in ("hello", "you"):
            client.async_stream_infer(
                MODEL, prompt(words), request_id=words, parameters=wish(60), enable_empty_final_response=True
            )
        pieces: dict[str, list[str]] = {"hello": [], "you": []}
        n_ended = 0
        while n_ended < 2:
            result, error = done.get(timeout=60)
            assert error is None, error
            answer = result.get_response()
            pieces[answer.id].append(text_of(result))
            n_ended += answer.parameters["triton_final_response"].bool_param
        client.stop_stream()
        whole = {
            words: text_of(client.infer(MODEL, prompt(words), parameters=wish(60), headers=HEADERS)) for words in pieces
        }
    assert {words: "".join(found) for words, found in pieces.items()} == whole
    assert all(len(found) > 1 for found in pieces.values()), pieces


def check_a_bad_wish_is_an_error_of_its_request_alone(url: str, address: str) -> None:
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: done.put((result, error)), headers=HEADERS)
        client.async_stream_infer(MODEL, prompt("a"), parameters={"temperature": 9.0})
        client.async_stream_infer(MODEL, prompt("a"), parameters=wish(1))
        _, error = done.get(timeout=60)
        assert "temperature" in str(error)
        result, error = done.get(timeout=60)
        assert error is None
        assert result.as_numpy("finish_reason")[0] == b"length"
        client.stop_stream()


def check_a_deadline_that_passes_mid_stream_is_told(url: str, address: str) -> None:
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: done.put((result, error)), headers=HEADERS)
        client.async_stream_infer(MODEL, prompt("a"), parameters=wish(4000), timeout=400_000)
        n_pieces, error = 0, None
        while error is None:
            _, error = done.get(timeout=60)
            n_pieces += 1
        assert n_pieces > 1
        assert "deadline" in str(error) or "in time" in str(error), error
        client.stop_stream()


async def check_a_client_that_leaves_is_not_written_for(url: str, address: str) -> None:
    async with aio.InferenceServerClient(address) as client:

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": MODEL, "inputs": prompt("a"), "parameters": wish(4000)}
            await asyncio.sleep(60)

        answers = client.stream_infer(requests(), headers=HEADERS)
        async for _, error in answers:
            assert error is None
            break
        answers.cancel()
        before = time.monotonic()
        (statistics,) = (await client.get_inference_statistics(MODEL, headers=HEADERS)).model_stats
        assert statistics.name == MODEL
        assert time.monotonic() - before < 10


run(globals())
