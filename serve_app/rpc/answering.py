"""Rpcs made from the functions that answer REST: request message → `RawRequest` → `Reply` → answer message.

Each maker returns a method for a class that has `calls`; used by `inference`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import orjson
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from serve_app.context import Context
from serve_app.protocols.types import Action, Answer, Control, RawRequest
from serve_app.rpc.calls import Calls
from serve_app.rpc.statuses import RpcContext

M = TypeVar("M", bound=Message)
ToRaw: TypeAlias = Callable[[Any], RawRequest]
Shape: TypeAlias = Callable[[Any], Mapping[str, Any]]  # REST's JSON to the message's


class HasCalls(Protocol):
    """Whoever the methods belong to."""

    calls: Calls


Method: TypeAlias = Callable[[Any, Any, RpcContext], Awaitable[M]]


def nothing(request: Message) -> RawRequest:
    """Return the request of an rpc whose message is empty."""
    return RawRequest()


def of_model(request: Any) -> RawRequest:
    """Return the request of an rpc whose message names a model and a version, both perhaps empty."""
    path = {"model": request.name, "version": request.version}
    return RawRequest({key: value for key, value in path.items() if value})


def of_repository(request: Any) -> RawRequest:
    """Return the request of an rpc that loads or unloads; KServe's clients name the model in Triton's first field."""
    parameters = {
        key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in request.parameters.items()
    }
    name = request.model_name or request.repository_name
    return RawRequest({"model": name}, body=orjson.dumps({"parameters": parameters}, default=repr))


def message(kind: type[M], body: Mapping[str, Any]) -> M:
    """Return the message that JSON members make; members it has no field for are left out."""
    made: M = ParseDict(dict(body), kind(), ignore_unknown_fields=True)
    return made


def answering(
    name: str, action: Action, kind: type[M], answer: Answer, raw: ToRaw = nothing, shape: Shape = dict
) -> Method[M]:
    """Return an rpc that says what REST's `answer` does."""

    async def method(self: HasCalls, request: Any, grpc_context: RpcContext) -> M:
        async def work(context: Context) -> M:
            reply = answer(raw(request), self.calls.gateway.visible(context))
            said: M = message(kind, shape(orjson.loads(reply.body)))
            return said

        answered: M = await self.calls.answer(name, action, grpc_context, kind(), work)
        return answered

    return method


def commanding(name: str, kind: type[M], control: Control) -> Method[M]:
    """Return an rpc that does what REST's `control` does."""

    async def method(self: HasCalls, request: Any, grpc_context: RpcContext) -> M:
        raw = of_repository(request)

        async def work(context: Context) -> M:
            gateway = self.calls.gateway
            await gateway.control(control(raw, gateway.visible(context)))
            nothing_to_say: M = kind()
            return nothing_to_say

        about = raw.path["model"]
        done: M = await self.calls.answer(name, Action.ADMIN, grpc_context, kind(), work, about=about)
        return done

    return method
