"""How well each text answers a query, read together by one classifier. Equals sentence-transformers' CrossEncoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from transformers import AutoModelForSequenceClassification

from deployments.engines.base import unavailable
from deployments.engines.classes import sigmoid
from deployments.engines.params import TextParams, parse_params
from deployments.engines.text_engine import TextEngine
from deployments.engines.texts import asked_with, read_texts
from deployments.spec import ModelSpec
from deployments.types import Array, InferRequest, Item, Tensors


class CrossEncoderParams(TextParams):
    """Parameters of a cross-encoder."""

    raw_scores: bool = Field(default=False, description="return logits as they are")


class CrossEncoder(TextEngine):
    """A sequence classification model with one class."""

    auto_class = AutoModelForSequenceClassification

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        super().__init__(path, spec, device)
        n_classes = self._model.config.num_labels
        if n_classes != 1:
            raise unavailable(spec, f"a cross-encoder has one class, this model has {n_classes}")
        self._has_sigmoid = _activation(self._model.config, spec) == "Sigmoid"

    def prepare(self, request: InferRequest) -> list[Item]:
        """Tokenise `query` BYTES [1] with each of `text` BYTES [n], or each of `queries` BYTES [n] with its text."""
        params = parse_params(CrossEncoderParams, request.params)
        field = asked_with(request.inputs)
        queries = read_texts(request.inputs, field)
        texts = read_texts(request.inputs, "text")
        truncate = self._truncates(params)
        if truncate is None:
            self._tokenizer.encode(queries, field)  # so that an error names the query where it alone is too long
        each = queries * len(texts) if field == "query" else queries
        return self._items(self._tokenizer.encode(each, "text", texts, truncate=truncate))

    def finish(self, request: InferRequest, outputs: Sequence[Array]) -> Tensors:
        """Return `score` FP32 [n], in the order of `text`."""
        logits = np.concatenate(outputs)
        is_raw = parse_params(CrossEncoderParams, request.params).raw_scores or not self._has_sigmoid
        return {"score": (logits if is_raw else sigmoid(logits)).astype(np.float32)}


def _activation(config: Any, spec: ModelSpec) -> str:
    """Return "Sigmoid" or "Identity": what sentence-transformers applies to this model's logit."""
    modern = getattr(config, "sentence_transformers", None) or {}
    path = modern.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    name = str(path or "torch.nn.Sigmoid").rpartition(".")[2]
    if name not in ("Sigmoid", "Identity"):
        raise unavailable(spec, f"its activation {path} is not known here; use engine: custom")
    return name
