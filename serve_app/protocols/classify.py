"""`/classify` and `/score` as vLLM serves them; `/classify` as infinity does where the request has its `raw_scores`.

Called through the rows in `ENDPOINTS`. When an answer was made is not told: `created` is 0.
"""

from functools import partial
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field, JsonValue

from deployments.errors import InvalidInput
from deployments.types import InferRequest, InferResult, ModelStatus, Task, text_array
from serve_app.protocols.choosing import model_for
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.openai_errors import OPENAI
from serve_app.protocols.text_inputs import Texts, read_texts
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render, Reply


class ClassifyRequest(Wire):
    """Texts to be classified."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "mood", "input": ["what a day"]}]})

    model: str | None = Field(default=None, description="may be left out where one model here classifies texts")
    input: Texts
    raw_scores: bool | None = Field(default=None, description="infinity's: logits in place of probabilities")
    user: str | None = None


class ScoreRequest(Wire):
    """One text against others, or each against the one at its place."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "rank", "text_1": "a pet", "text_2": ["a cat", "a stock price"]}]}
    )

    model: str | None = Field(default=None, description="may be left out where one model here ranks")
    text_1: Texts
    text_2: Texts
    user: str | None = None


class TextUsage(Wire):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class ClassifyResponse(Wire):
    """vLLM: an object a text, its probabilities in the order of the model's classes; infinity: a list a text."""

    id: str
    object: str
    created: int
    model: str
    data: list[Any]
    usage: TextUsage


class ScoreLine(Wire):
    """One score."""

    index: int
    object: str
    score: float | None


class ScoreResponse(Wire):
    """A score a text, in their order."""

    id: str
    object: str
    created: int
    model: str
    data: list[ScoreLine]
    usage: TextUsage


def parse_classify(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /classify`."""
    body = parse_body(raw.body, ClassifyRequest)
    texts = read_texts(body.input, "input")
    name, status = model_for(body.model, (Task.TEXT_CLASSIFICATION,), models, "classify requests")
    params: dict[str, JsonValue] = {"function_to_apply": "none"} if body.raw_scores else {}
    inputs = {"text": text_array(texts)}
    request = InferRequest(name, inputs, params=params, request_id=raw.request_id, user=body.user or "")
    is_infinity = body.raw_scores is not None
    return request, partial(_render_classes, status, is_infinity, raw.request_id)


def parse_score(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /score`."""
    body = parse_body(raw.body, ScoreRequest)
    queries, texts = read_texts(body.text_1, "text_1"), read_texts(body.text_2, "text_2")
    if len(queries) not in (1, len(texts)):
        raise InvalidInput(
            f"text_1: has {len(queries)} texts but text_2 has {len(texts)}; give one, or as many", field="text_1"
        )
    name, _ = model_for(body.model, (Task.TEXT_RANKING,), models, "score requests")
    inputs = {"query" if len(queries) == 1 else "queries": text_array(queries), "text": text_array(texts)}
    request = InferRequest(name, inputs, request_id=raw.request_id, user=body.user or "")
    return request, partial(_render_scores, raw.request_id)


_post = partial(Endpoint, "POST", action=Action.INFER, dialect=OPENAI)
_score = partial(_post, parse=parse_score, request=ScoreRequest, response=ScoreResponse)
ROWS = (
    _post(
        "/classify",
        summary="Classify texts (vLLM, infinity)",
        parse=parse_classify,
        request=ClassifyRequest,
        response=ClassifyResponse,
    ),
    _score("/score", summary="Score texts against one, or pair by pair (vLLM)"),
    _score("/v1/score", summary="Score texts against one, or pair by pair (vLLM, Ray LLM)"),
)


def _render_classes(status: ModelStatus, is_infinity: bool, request_id: str, result: InferResult) -> Reply:
    labels, scores = result.outputs["label"], result.outputs["score"]
    rows = [
        _infinity(*row) if is_infinity else _vllm(i, status, *row)
        for i, row in enumerate(zip(labels, scores, strict=True))
    ]
    return _answer("classify" if is_infinity else "list", request_id, rows, result)


def _infinity(labels: Any, scores: Any) -> list[dict[str, object]]:
    return [{"score": score.item(), "label": label.decode()} for label, score in zip(labels, scores, strict=True)]


def _vllm(index: int, status: ModelStatus, labels: Any, scores: Any) -> dict[str, object]:
    by_label = {label.decode(): score.item() for label, score in zip(labels, scores, strict=True)}
    best = labels[int(np.argmax(scores))].decode()
    known = [label for label in status.labels if label in by_label] or list(by_label)
    probs = [by_label[label] for label in known]
    return {"index": index, "label": best, "probs": probs, "num_classes": len(probs)}


def _render_scores(request_id: str, result: InferResult) -> Reply:
    lines = [{"index": i, "object": "score", "score": s.item()} for i, s in enumerate(result.outputs["score"])]
    return _answer("list", request_id, lines, result)


def _answer(kind: str, request_id: str, data: list[Any], result: InferResult) -> Reply:
    usage = {"prompt_tokens": result.usage.n_tokens, "total_tokens": result.usage.n_tokens}
    body = {"id": request_id, "object": kind, "created": 0, "model": result.model, "data": data, "usage": usage}
    return Reply(dump(body))
