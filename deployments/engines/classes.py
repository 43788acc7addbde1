"""Logits to named classes: what the text and image classifiers share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from deployments.engines.options import ClassificationOptions
from deployments.engines.params import TextParams
from deployments.spec import Strict
from deployments.types import Array, Tensors, text_array

Apply: TypeAlias = Literal["softmax", "sigmoid", "none"]
Scores: TypeAlias = NDArray[np.float32]


class ClassParams(Strict):
    """Parameters of a classifier; None means: as the model's entry says."""

    top_k: int | None = Field(default=None, ge=1, description="classes to return")
    function_to_apply: Apply | None = Field(default=None, description="what turns logits into scores")


class TextClassParams(TextParams, ClassParams):
    """Parameters of a text classifier."""


def class_names(config: Any) -> tuple[str, ...]:
    """Return the names of a model's classes in index order."""
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))


def default_function(config: Any) -> Apply:
    """Return what transformers' pipelines apply to the logits of this model."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def sigmoid(logits: Array) -> Scores:
    """Return 1 / (1 + e^-x) without overflow."""
    exponential = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, exponential) / (1 + exponential)


def softmax(logits: Array) -> Scores:
    """Return the softmax over the last axis."""
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=-1, keepdims=True))


_FUNCTIONS: Mapping[Apply, Callable[[Array], Array]] = {"softmax": softmax, "sigmoid": sigmoid, "none": np.asarray}


def ranked(logits: Sequence[Array], config: Any, options: ClassificationOptions, params: ClassParams) -> Tensors:
    """Return `label` BYTES [n,k] and `score` FP32 [n,k], the highest score first."""
    function = params.function_to_apply or options.function_to_apply or default_function(config)
    rows = np.stack(logits)
    scores = _FUNCTIONS[function](rows).astype(np.float32)
    order = np.argsort(-scores, axis=-1, kind="stable")[:, : params.top_k or options.top_k]
    names = text_array(class_names(config))
    return {"label": names[order], "score": np.take_along_axis(scores, order, axis=-1)}
