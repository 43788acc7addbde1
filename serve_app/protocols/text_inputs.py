"""What the text services take as input: a text, several, or token ids of the model's own vocabulary in place of texts.

Called by the codecs of OpenAI, vLLM and Text Embeddings Inference. Pure. Token ids become text: numbers with spaces
between, which the model reads with the parameter `token_ids`.
"""

from typing import Annotated, Any

from pydantic import JsonValue, WithJsonSchema

from deployments.errors import InvalidInput

MAX_TEXTS = 2048
_ID: Any = {"type": "integer", "minimum": 0}
_STRINGS: list[Any] = [
    {"type": "string", "minLength": 1},
    {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_TEXTS},
]
_IDS: list[Any] = [
    {"type": "array", "items": _ID, "minItems": 1},
    {"type": "array", "items": {"type": "array", "items": _ID, "minItems": 1}, "minItems": 1, "maxItems": MAX_TEXTS},
]
Texts = Annotated[JsonValue, WithJsonSchema({"anyOf": _STRINGS})]
TextsOrIds = Annotated[JsonValue, WithJsonSchema({"anyOf": [*_STRINGS, *_IDS]})]


def read_texts(value: JsonValue, field: str) -> list[str]:
    """Return one text or several. Raises InvalidInput."""
    if isinstance(value, str):
        return [_text(value, field)]
    entries = _entries(value, field, "a string or a list of strings")
    return [_text(text, f"{field}[{index}]") for index, text in enumerate(entries)]


def read_texts_or_ids(value: JsonValue, field: str) -> tuple[list[str], bool]:
    """Return the texts of any of the four forms, token ids as numbers with spaces between; and whether they are ids.

    Raises:
        InvalidInput: it is none of them, or some of both.
    """
    if isinstance(value, str):
        return [_text(value, field)], False
    if isinstance(value, list) and value and is_id(value[0]):
        return [_ids(value, field)], True
    entries = _entries(value, field, "a string, token ids, or a list of either")
    if isinstance(entries[0], list):
        return [_ids(ids, f"{field}[{index}]") for index, ids in enumerate(entries)], True
    return [_text(text, f"{field}[{index}]") for index, text in enumerate(entries)], False


def is_id(value: JsonValue) -> bool:
    """Return whether this may be a token id; the model knows its vocabulary."""
    return type(value) is int and value >= 0


def ids_as_text(value: JsonValue, field: str) -> str:
    """Return token ids as numbers with spaces between, perhaps none. Raises InvalidInput."""
    if not isinstance(value, list) or not all(is_id(token) for token in value):
        raise InvalidInput(f"{field}: must be a list of token ids, whole numbers from 0", field=field)
    return " ".join(map(str, value))


def _ids(value: JsonValue, field: str) -> str:
    if value == []:
        raise InvalidInput(f"{field}: must be a list of token ids, not empty", field=field)
    return ids_as_text(value, field)


def _entries(value: JsonValue, field: str, what: str) -> list[JsonValue]:
    if not isinstance(value, list):
        raise InvalidInput(f"{field}: must be {what}", field=field)
    if not value:
        raise InvalidInput(f"{field}: must be {what}, not empty", field=field)
    if len(value) > MAX_TEXTS:
        raise InvalidInput(f"{field}: has {len(value)} texts, at most {MAX_TEXTS}", field=field)
    return value


def _text(value: JsonValue, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{field}: must be a string", field=field)
    if not value:
        raise InvalidInput(f"{field}: must not be an empty string", field=field)
    return value
