"""JSON bodies: bytes to checked pydantic models, answers to bytes.

Called by every codec. orjson with `model_validate` is as fast as `model_validate_json` (1 M floats: 63 against 68 ms,
a small body: 2.6 against 2.2 µs), and refuses the NaN and Infinity that the latter lets through.
"""

import difflib
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.errors import InvalidInput

MAX_DEPTH = 100  # Triton's limit; orjson itself stops at 1024
_SHOWN = 3
_NESTED = frozenset((dict, list))


class Wire(BaseModel):
    """A body: no conversions between types, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


Body = TypeVar("Body", bound=Wire)


def parse_body(body: bytes, model: type[Body]) -> Body:
    """Return the body as `model`.

    Raises:
        InvalidInput: not UTF-8, not JSON (line and column), too deep, or a field is wrong (`field`).
    """
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidInput(f"body: must be a JSON object, got {_kind(value)}", field="body")
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise _invalid(exc, model) from None


def parse_json(body: bytes) -> Any:
    """Return what a JSON body holds, at most `MAX_DEPTH` levels deep."""
    if not body.strip():
        raise InvalidInput("body: is empty; send a JSON object", field="body")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise _broken(body, exc) from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise _too_deep()
    return value


def dump(value: object) -> bytes:
    """Return JSON bytes. Numpy arrays must be C-contiguous; NaN and infinities become null."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _broken(body: bytes, exc: orjson.JSONDecodeError) -> InvalidInput:
    if "depth limit" in exc.msg:
        return _too_deep()
    try:
        body.decode()
    except UnicodeDecodeError as bad:
        return InvalidInput(f"body: is not UTF-8 (byte {bad.start}); send JSON in UTF-8", field="body")
    return InvalidInput(
        f"body: is not JSON: {exc.msg} (line {exc.lineno}, column {exc.colno})",
        field="body",
        line=exc.lineno,
        column=exc.colno,
    )


def _too_deep() -> InvalidInput:
    return InvalidInput(f"body: JSON nesting depth exceeds maximum allowed limit ({MAX_DEPTH})", field="body")


def _is_deeper(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        below: list[object] = []
        for node in level:
            children = list(node.values()) if isinstance(node, dict) else node
            if isinstance(children, list) and not _NESTED.isdisjoint(map(type, children)):
                below += [child for child in children if type(child) in _NESTED]
        if not below:
            return False
        level = below
    return True


def _invalid(exc: ValidationError, model: type[BaseModel]) -> InvalidInput:
    errors = exc.errors(include_url=False, include_input=False, include_context=False)
    fields = [field_path(error["loc"]) for error in errors]
    lines = [f"{field}: {_reason(error, model)}" for field, error in zip(fields, errors, strict=True)]
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return InvalidInput("; ".join(lines[:_SHOWN]) + more, field=fields[0])


def _reason(error: Any, model: type[BaseModel]) -> str:
    if error["type"] == "missing":
        return "is required"
    if error["type"] != "extra_forbidden":
        message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return message[0].lower() + message[1:]
    near = difflib.get_close_matches(str(error["loc"][-1]), model.model_fields, n=1) if len(error["loc"]) == 1 else []
    return f"is not a known field; did you mean {near[0]!r}?" if near else "is not a known field"


def field_path(loc: tuple[int | str, ...]) -> str:
    """Return `inputs[0].shape` for ("inputs", 0, "shape")."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".") or "body"


def _kind(value: object) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
