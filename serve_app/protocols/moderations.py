"""OpenAI's moderations by any text classifier whose entry maps its labels to OpenAI's categories (`moderation`).

Called through its row. A category's score is the highest among its labels; it is flagged from the entry's `threshold`
on. OpenAI's own model names, and none, mean the first model here that has such a map.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema

from deployments.errors import InvalidInput
from deployments.moderation import CATEGORIES
from deployments.types import InferRequest, InferResult, ModelStatus, text_array
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.openai_errors import OPENAI
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render, Reply

MAX_TEXTS = 2048
_THEIRS = ("omni-moderation", "text-moderation")
_INPUT: Any = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": {"type": "object"}, "minItems": 1},
    ]
}


class ModerationRequest(Wire):
    """Texts to be judged."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "guard", "input": ["what a day"]}]})

    model: str | None = Field(default=None, description="OpenAI's names, and none, mean the first model with a map")
    input: Annotated[JsonValue, WithJsonSchema(_INPUT)]


class ModerationResult(Wire):
    """One text, by category."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class ModerationResponse(Wire):
    """A result a text."""

    id: str
    model: str
    results: list[ModerationResult]


def parse_moderations(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /v1/moderations`."""
    body = parse_body(raw.body, ModerationRequest)
    texts = _texts(body.input)
    name, status = _model(body.model, models)
    request = InferRequest(name, {"text": text_array(texts)}, params={"truncate": True}, request_id=raw.request_id)
    return request, partial(_render, status, raw.request_id)


ROWS = (
    Endpoint(
        "POST",
        "/v1/moderations",
        Action.INFER,
        "Judge texts by OpenAI's categories",
        OPENAI,
        parse=parse_moderations,
        request=ModerationRequest,
        response=ModerationResponse,
    ),
)


def _model(name: str | None, models: Models) -> tuple[str, ModelStatus]:
    if name is None or name.startswith(_THEIRS):
        found = next((status for status in models.all() if status.moderation is not None), None)
        if found is None:
            raise InvalidInput("model: no model here has a `moderation` map in its entry", field="model")
        return found.name, models.resolve(found.name)
    status = models.resolve(name)
    if status.moderation is None:
        raise InvalidInput(f"model: {status.name!r} has no `moderation` map in its entry", field="model")
    return name, status


def _texts(value: JsonValue) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TEXTS:
        raise InvalidInput(f"input: must be a string or a list of 1 to {MAX_TEXTS}", field="input")
    if isinstance(value[0], dict):
        return ["\n".join(_part(part, index) for index, part in enumerate(value))]
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise InvalidInput(f"input[{index}]: must be a string", field=f"input[{index}]")
    return [str(text) for text in value]


def _part(part: JsonValue, index: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise InvalidInput(
        f"input[{index}]: must be {{'type': 'text', 'text': string}}; images are not judged here",
        field=f"input[{index}]",
    )


def _render(status: ModelStatus, request_id: str, result: InferResult) -> Reply:
    rows = zip(result.outputs["label"], result.outputs["score"], strict=True)
    results = [_judge(status, [label.decode() for label in labels], scores.tolist()) for labels, scores in rows]
    return Reply(dump({"id": f"modr-{request_id}", "model": result.model, "results": results}))


def _judge(status: ModelStatus, labels: Sequence[str], scores: Sequence[float]) -> dict[str, object]:
    assert status.moderation is not None  # noqa: S101 - such models only get here
    found = dict.fromkeys(CATEGORIES, 0.0)
    for label, score in zip(labels, scores, strict=True):
        category = status.moderation.labels.get(label)
        if category is not None:
            found[category] = max(found[category], score)
    flags = {category: score >= status.moderation.threshold for category, score in found.items()}
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": found,
        "category_applied_input_types": {category: ["text"] for category in CATEGORIES},
    }
