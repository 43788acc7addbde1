"""Errors as gRPC statuses: one table, by the status the same error has over HTTP. Used by `calls` and `streams`."""

import math
from collections.abc import Mapping
from typing import Protocol

import grpc

from deployments.errors import ServeError
from serve_app.protocols.v2_errors import message_of

STATUSES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    431: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class RpcContext(Protocol):
    """What a method is told of its call, and how it says how it ended: Serve's `RayServegRPCContext`."""

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        """Return what the client sent."""

    def peer(self) -> str:
        """Return who is at the other end, as "ipv4:127.0.0.1:5000"."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Say how the call ended."""

    def set_details(self, details: str) -> None:
        """Say why."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        """Set what is sent at the end."""


def fail(rpc: RpcContext, error: ServeError) -> dict[str, str]:
    """End a call with an error; return the trailing metadata that says more.

    NOTE: the method must then return, not raise: Serve would log a traceback for each, and drop the metadata.
    """
    rpc.set_code(STATUSES.get(error.status, grpc.StatusCode.INTERNAL))
    rpc.set_details(message_of(error))
    more = {"error-code": error.code}
    if error.retry_after_s is not None:
        more["retry-after"] = str(math.ceil(error.retry_after_s))
    return more
