import pytest
from pydantic import Field

from deployments.errors import InvalidInput
from serve_app.protocols.json_body import MAX_DEPTH, Wire, field_path, parse_body, parse_json


class Body(Wire):
    name: str
    counts: list[int] = Field(default_factory=list)


BAD = [
    (b"", "body: is empty"),
    (b" \n", "body: is empty"),
    (b"\xff\xfe{}", "body: is not UTF-8 (byte 0)"),
    (b'{"name": "\xe9"}', "body: is not UTF-8 (byte 10)"),
    (b'{"name": "a",\n}', "line 1, column 13"),
    (b'{\n"name": x}', "line 2, column 9"),
    (b'{"name": "a"} {}', "body: is not JSON: "),
    (b'{"name": "\\ud800"}', "body: is not JSON: "),
    (b'{"name": NaN}', "body: is not JSON: "),
    (b'{"name": 1e999}', "body: is not JSON: "),
    (b"null", "body: must be a JSON object, got null"),
    (b'"text"', "got a string"),
    (b"1", "got a number"),
    (b"[" * 200_000, "nesting depth exceeds maximum allowed limit (100)"),
    (b"[" * 1000 + b"]" * 1000, "nesting depth exceeds maximum allowed limit (100)"),
    (b'{"a":' * 101 + b"1" + b"}" * 101, "nesting depth exceeds maximum allowed limit (100)"),
    (b'{"name": "a", "counts": [1, "2"]}', "counts[1]: "),
    (b'{"name": "a", "counts": [1.0]}', "counts[0]: "),
    (b'{"nam": "a"}', "name: is required; nam: is not a known field; did you mean 'name'?"),
    (b'{"name": 1, "a": 1, "b": 1, "c": 1}', "; and 1 more"),
]


@pytest.mark.parametrize(("body", "message"), BAD)
def test_a_broken_body_says_where(body: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_body(body, Body)
    assert message in caught.value.message
    assert caught.value.details["field"]


def test_a_hundred_levels_are_not_too_deep() -> None:
    parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    parse_json(b"[" + b"[]," * 500 + b"[]]")


def test_a_field_path_reads_like_code() -> None:
    assert field_path(("inputs", 0, "shape")) == "inputs[0].shape"
    assert field_path(()) == "body"
