"""One gRPC call from metadata to trailing metadata: who asks, the answer or the error, the record of it.

What `http.py` does for a request, for every rpc alike. Called by the methods in `inference` and `health`. A client's
deadline, or its leaving, cancels the method; it is then recorded as cancelled, like an HTTP client that is gone.
"""

import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TypeAlias, TypeVar

from google.protobuf.message import Message

from deployments.chunks import GENERATIVE_TASKS, as_result
from deployments.errors import BodyTooLarge, ServeError, Unauthenticated
from deployments.types import MONOTONIC, InferRequest
from serve_app.audit import audit
from serve_app.context import Context, Door
from serve_app.gateway import Gateway
from serve_app.protocols.types import Action, Models
from serve_app.protocols.v2_grpc import FINAL, Render, parse_infer
from serve_app.rpc.inference_pb2 import ModelInferRequest, ModelInferResponse
from serve_app.rpc.statuses import RpcContext, fail

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
Work: TypeAlias = Callable[[Context], Awaitable[M]]
_MAX_ID = 128
_STRANGER = "no authentication is configured, so only this machine may call: configure `auth.keys` or `auth.jwt`"


class Calls:
    """Answers calls through the gateway."""

    def __init__(self, gateway: Gateway, max_bytes: int, admits: Callable[[str], bool] = lambda _: True) -> None:
        self.gateway = gateway
        self._max_bytes = max_bytes
        self._admits = admits

    async def answer(
        self, name: str, action: Action, rpc: RpcContext, empty: M, work: Work[M], *, about: str = ""
    ) -> M:
        """Answer one call, `about` a model, with what `work` gives; after an error with `empty`, which is not sent."""
        async with self.opened(name, action, rpc, about=about) as context:
            if context is not None:
                return await work(context)
        return empty

    @asynccontextmanager
    async def opened(
        self, name: str, action: Action, rpc: RpcContext, *, about: str = ""
    ) -> AsyncIterator[Context | None]:
        """Authenticate a call, turn what goes wrong in the block into its status, and record it in the end.

        Yields None, once the status is set, for a caller who may not come in.
        """
        metadata = _metadata(rpc)
        context = self.context(name, action, metadata)
        context.model = about
        more: dict[str, str] = {}
        try:
            try:
                if action is not Action.OPEN and not self._admits(rpc.peer()):
                    raise Unauthenticated(_STRANGER)
                await self.gateway.authenticate(context, metadata)
            except ServeError as exc:
                context.ended(exc.status, exc.code)
                more = fail(rpc, exc)
                yield None
                return
            yield context
            if context.code == "cancelled":  # nobody has said otherwise
                context.ended(200)
        except ServeError as exc:
            context.ended(exc.status, exc.code)
            more = fail(rpc, exc)
        except Exception:
            logger.exception("call %s of %s failed", context.request_id, name)
            hidden = ServeError(f"internal error; quote request id {context.request_id!r} to the operator")
            context.ended(hidden.status, hidden.code)
            more = fail(rpc, hidden)
        finally:
            self._finish(context, rpc, more)

    def context(self, name: str, action: Action, metadata: Mapping[str, str]) -> Context:
        """Return a new context for a call."""
        request_id = (metadata.get("x-request-id") or metadata.get("request_id") or uuid.uuid4().hex)[:_MAX_ID]
        return Context(request_id, Door.GRPC, name, name, action)

    async def infer(self, message: ModelInferRequest, context: Context) -> ModelInferResponse:
        """Answer one inference. Raises ServeError."""
        request, render = self._read(message, context, is_stream=False)
        return render(await self.gateway.infer(request, context))

    async def stream(self, message: ModelInferRequest, context: Context) -> AsyncGenerator[ModelInferResponse, None]:
        """Answer one inference of a stream: at once, or piece by piece if its model generates. Raises ServeError."""
        request, render = self._read(message, context, is_stream=True)
        model = self.gateway.visible(context).resolve(request.model, request.version)
        if model.task not in GENERATIVE_TASKS:
            yield render(await self.gateway.infer(request, context))
            return
        async with aclosing(self.gateway.stream(request, context)) as pieces:
            async for ready in pieces:
                for chunk in ready:
                    answer = render(as_result(chunk))
                    if FINAL in answer.parameters:
                        answer.parameters[FINAL].bool_param = chunk.usage is not None
                    yield answer

    def _read(self, message: ModelInferRequest, context: Context, *, is_stream: bool) -> tuple[InferRequest, Render]:
        n_bytes = message.ByteSize()
        if n_bytes > self._max_bytes:
            raise BodyTooLarge(
                f"message of {n_bytes} bytes exceeds the maximum of {self._max_bytes}; send fewer items a request",
                max_bytes=self._max_bytes,
            )
        models: Models = self.gateway.visible(context)
        return parse_infer(message, models, context.request_id, is_stream=is_stream)

    def _finish(self, context: Context, rpc: RpcContext, more: Mapping[str, str]) -> None:
        seconds = MONOTONIC() - context.started
        self.gateway.observe_rpc(context.method, context.code, seconds)
        self.gateway.record(context)
        if context.action is Action.ADMIN:
            audit(context.method, **context.audited({"model": context.model}))
        timing = context.server_timing(MONOTONIC())
        added = {**context.headers, **more, "x-request-id": context.request_id, "server-timing": timing}
        rpc.set_trailing_metadata([(key.lower(), value) for key, value in added.items()])


def _metadata(rpc: RpcContext) -> dict[str, str]:
    return {key: value for key, value in rpc.invocation_metadata() if isinstance(value, str)}
