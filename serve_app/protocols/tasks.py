"""Named tensors to the shapes users know from Hugging Face pipelines: a table, task -> renderer.

Called by `native`. A new task is one row in `RENDERERS`; a model whose outputs are not those of its task (a custom
engine), and the tasks `tensor` and `custom`, are rendered by output name.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import orjson

from deployments.types import Array, Task, Tensors

Rendered: TypeAlias = Any  # what orjson writes: lists, dicts, arrays, fragments


@dataclass(frozen=True, slots=True)
class Renderer:
    """How one task's outputs are shown, and the tensors that takes."""

    needs: frozenset[str]
    render: Callable[[Tensors], Rendered]


def render_outputs(task: Task, outputs: Tensors) -> Rendered:
    """Return what `outputs` shows for a task; non-finite numbers become null when it is written as JSON."""
    renderer = RENDERERS.get(task)
    if renderer is None or not renderer.needs <= outputs.keys():
        return _by_name(outputs)
    return renderer.render(outputs)


def _vectors(outputs: Tensors) -> Rendered:
    vectors = np.ascontiguousarray(_wide(outputs["embedding"]))
    return np.split(vectors, np.cumsum(outputs["n_tokens"])[:-1]) if "n_tokens" in outputs else vectors  # by text


def _records(*fields: str) -> Renderer:
    """Render tensors of shape (n, k) as n lists of k objects with these keys."""

    def render(outputs: Tensors) -> Rendered:
        columns = [_nested(outputs[field]) for field in fields]
        return [
            [dict(zip(fields, values, strict=True)) for values in zip(*rows, strict=True)]
            for rows in zip(*columns, strict=True)
        ]

    return Renderer(frozenset(fields), render)


def _entities(outputs: Tensors) -> Rendered:
    return [orjson.Fragment(entities) for entities in outputs["entities"]]


def _texts(outputs: Tensors) -> Rendered:
    columns = {"text": outputs["text"], "finish_reason": outputs["finish_reason"], "n_tokens": outputs["n_tokens"]}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*map(_nested, columns.values()), strict=True)]
    if "logprobs" in outputs:
        for row, logprobs in zip(rows, outputs["logprobs"], strict=True):
            row["logprobs"] = orjson.Fragment(logprobs)
    return rows


def _ranking(outputs: Tensors) -> Rendered:
    scores = outputs["score"]
    order = np.argsort(-_wide(scores), kind="stable")
    return [{"index": int(index), "score": scores[index].item()} for index in order]


def _by_name(outputs: Tensors) -> Rendered:
    return {name: _nested(array) for name, array in outputs.items()}


def _nested(array: Array) -> Any:
    if array.dtype != np.object_:
        return _wide(array).tolist()
    text = np.empty(array.shape, dtype=np.object_)
    for index, element in np.ndenumerate(array):
        text[index] = _text(element)
    return text.tolist()


def _wide(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _text(element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return base64.b64encode(element).decode()


_LABEL_SCORE = _records("label", "score")
_TEXT = Renderer(frozenset(("text", "finish_reason", "n_tokens")), _texts)
RENDERERS: dict[Task, Renderer] = {
    Task.FEATURE_EXTRACTION: Renderer(frozenset(("embedding",)), _vectors),
    Task.TEXT_CLASSIFICATION: _LABEL_SCORE,
    Task.ZERO_SHOT_CLASSIFICATION: _LABEL_SCORE,
    Task.IMAGE_CLASSIFICATION: _LABEL_SCORE,
    Task.FILL_MASK: _records("score", "token", "token_str", "sequence"),
    Task.TOKEN_CLASSIFICATION: Renderer(frozenset(("entities",)), _entities),
    Task.TEXT_GENERATION: _TEXT,
    Task.TEXT2TEXT_GENERATION: _TEXT,
    Task.TEXT_RANKING: Renderer(frozenset(("score",)), _ranking),
}
