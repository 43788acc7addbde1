"""Python's door: `connect()` for code inside the Ray cluster, `Client` over HTTP for everything else.

endpoint = connect()
vectors = endpoint.infer("minilm", ["a text"]).result().outputs["embedding"]      # sync
vectors = (await endpoint.infer("minilm", ["a text"])).outputs["embedding"]       # async
"""

from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from pydantic import JsonValue
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from deployments.chunks import Chunk
from deployments.errors import DeadlineExceeded, InvalidInput, ServeError
from deployments.types import Array, InferRequest, InferResult, text_array

Inputs = str | Sequence[str] | Mapping[str, Any]


class Pending:
    """An answer on its way: `.result()` waits for it, `await` does so without blocking."""

    def __init__(self, response: DeploymentResponse) -> None:
        self._response = response

    def result(self, timeout_s: float | None = None) -> InferResult:
        """Wait for the answer. Raises ServeError."""
        try:
            result: InferResult = self._response.result(timeout_s=timeout_s)
        except RayTaskError as exc:
            raise _own(exc) from None
        except TimeoutError:
            self._response.cancel()
            raise DeadlineExceeded(f"no answer within {timeout_s} s") from None
        return result

    def __await__(self) -> Generator[Any, None, InferResult]:
        return self._wait().__await__()

    async def _wait(self) -> InferResult:
        try:
            result: InferResult = await self._response
        except RayTaskError as exc:
            raise _own(exc) from None
        return result


class Streaming:
    """A streamed answer on its way: `for` or `async for` over its chunks; `close()` stops it."""

    def __init__(self, response: DeploymentResponseGenerator) -> None:
        self._response = response

    def __iter__(self) -> Iterator[Chunk]:
        try:
            for ready in self._response:
                yield from ready
        except RayTaskError as exc:
            raise _own(exc) from None
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            async for ready in self._response:
                for chunk in ready:
                    yield chunk
        except RayTaskError as exc:
            raise _own(exc) from None
        finally:
            self.close()

    def close(self) -> None:
        """Stop the generation; its memory is free with the next token."""
        self._response.cancel()


class Endpoint:
    """A handle on the endpoint; make it with `connect`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._infer = handle.options(method_name="infer")
        self._stream = handle.options(method_name="stream", stream=True)

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | None = None,
        parameters: Mapping[str, JsonValue] | None = None,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Pending:
        """Send one request; returns at once.

        `inputs` is a text, texts, or tensors by name (numpy arrays, or lists of strings for BYTES); `outputs` names
        the wanted outputs, default all.
        """
        request = InferRequest(
            model=model,
            inputs=to_tensors(inputs),
            version=version,
            params=dict(parameters or {}),
            outputs=tuple(outputs) if outputs is not None else None,
            timeout_s=timeout_s,
        )
        return Pending(self._infer.remote(request))

    def stream(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | None = None,
        parameters: Mapping[str, JsonValue] | None = None,
        timeout_s: float | None = None,
    ) -> Streaming:
        """Send one request to a generating model; its text comes in chunks.

        `inputs` is a prompt, prompts, or `{"messages": [json]}`: a conversation as JSON text.
        """
        request = InferRequest(model, to_tensors(inputs), version, dict(parameters or {}), timeout_s=timeout_s)
        return Streaming(self._stream.remote(request))


def connect(application: str = "endpoint") -> Endpoint:
    """Return a handle on the endpoint of this Ray cluster; works in tasks, actors and drivers, sync and async."""
    handle = serve.get_deployment_handle("Ingress", app_name=application)
    # NOTE: with the throughput flags a router shares its caller's loop, which a sync caller does not have. Serve keeps
    # handles: a second `connect` gets the one that the first has set up.
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)
    return Endpoint(handle)


def to_tensors(inputs: Inputs) -> dict[str, Array]:
    """Turn what a caller passes into named tensors. Raises InvalidInput."""
    if isinstance(inputs, str):
        return {"text": text_array([inputs])}
    if isinstance(inputs, Mapping):
        return {name: _to_tensor(name, value) for name, value in inputs.items()}
    return {"text": _to_tensor("text", list(inputs))}


def _to_tensor(name: str, value: object) -> Array:
    if isinstance(value, str):
        return text_array([value])
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return text_array(list(value))
    if isinstance(value, list | tuple) and all(isinstance(v, bytes) for v in value):
        array = np.empty(len(value), dtype=np.object_)
        array[:] = value
        return array
    if isinstance(value, list | tuple | np.ndarray | int | float):
        return np.asarray(value)
    raise InvalidInput(f"input {name!r} is a {type(value).__name__}; give strings, bytes or a numpy array", field=name)


def _own(exc: RayTaskError) -> Exception:
    return exc.cause if isinstance(exc.cause, ServeError) else exc


def _told(response: httpx.Response) -> ServeError:
    """Return what an error answer says; a proxy in between may have written it."""
    try:
        error = response.json()["error"]
        return ServeError(error["message"], code=error["code"], status=response.status_code)
    except (ValueError, KeyError, TypeError):
        return ServeError(f"HTTP {response.status_code}: {response.text[:200]}", status=response.status_code)


class Client:
    """A thin HTTP client of the native API (`POST /v1/predict`)."""

    def __init__(self, url: str = "http://127.0.0.1:8000", timeout_s: float = 60.0) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s)

    def predict(
        self,
        model: str,
        inputs: JsonValue,
        *,
        version: str | None = None,
        parameters: dict[str, JsonValue] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON answer of `/v1/predict`. Raises ServeError with the server's code and message."""
        body = {"model": model, "version": version, "inputs": inputs, "parameters": parameters}
        response = self._http.post("/v1/predict", json={k: v for k, v in body.items() if v is not None})
        if response.is_error:
            raise _told(response)
        answer: dict[str, Any] = response.json()
        return answer

    def is_ready(self) -> bool:
        """Return whether the endpoint says it is ready."""
        return self._http.get("/ready").is_success

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
