"""Triton's settings of tracing and logging over gRPC, where reading and changing are one rpc. Used by `inference`.

A message with settings in it would change something, which is refused as over REST.
"""

from collections.abc import Mapping
from typing import Any

from serve_app.protocols import v2_absent
from serve_app.protocols.types import Models, RawRequest, Reply


def settings(request: Any) -> RawRequest:
    """Return the request: a body where something would be changed."""
    name = getattr(request, "model_name", "")
    return RawRequest({"model": name} if name else {}, body=b"{}" if request.settings else b"")


def trace_settings(raw: RawRequest, models: Models) -> Reply:
    """Answer or refuse `TraceSetting`."""
    return v2_absent.update_trace(raw, models) if raw.body else v2_absent.trace(raw, models)


def log_settings(raw: RawRequest, models: Models) -> Reply:
    """Answer or refuse `LogSettings`."""
    return v2_absent.update_log(raw, models) if raw.body else v2_absent.log(raw, models)


def trace_values(body: Mapping[str, str | list[str]]) -> dict[str, Any]:
    """Return trace settings as their message has them: lists."""
    return {"settings": {k: {"value": v if isinstance(v, list) else [v]} for k, v in body.items()}}


def log_values(body: Mapping[str, str | bool | int]) -> dict[str, Any]:
    """Return log settings as their message has them: each in the field of its kind."""
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    return {"settings": {key: {kinds[type(value)]: value} for key, value in body.items()}}


def empty(body: object) -> dict[str, Any]:
    """Return an empty message."""
    return {}
