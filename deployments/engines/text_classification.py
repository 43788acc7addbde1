"""Texts, or pairs of texts, to classes with scores. Equals transformers' `text-classification` pipeline, top_k=None."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModelForSequenceClassification

from deployments.engines.classes import TextClassParams, class_names, ranked
from deployments.engines.options import ClassificationOptions
from deployments.engines.params import parse_params
from deployments.engines.text_engine import TextEngine
from deployments.engines.texts import check_pair, read_texts
from deployments.spec import ModelSpec
from deployments.types import Array, InferRequest, Item, Tensors


class TextClassification(TextEngine):
    """Any sequence classification model; `text_pair` goes with `text` one by one."""

    auto_class = AutoModelForSequenceClassification

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        super().__init__(path, spec, device)
        self.labels = class_names(self._model.config)
        self._options = ClassificationOptions.model_validate(spec.options)

    def prepare(self, request: InferRequest) -> list[Item]:
        """Tokenise `text` BYTES [n], with `text_pair` BYTES [n] where given."""
        params = parse_params(TextClassParams, request.params)
        pairs = None
        texts = read_texts(request.inputs, "text")
        if "text_pair" in request.inputs:
            check_pair(request.inputs, "text", "text_pair")
            pairs = read_texts(request.inputs, "text_pair")
        return self._items(self._tokenizer.encode(texts, "text", pairs, truncate=self._truncates(params)))

    def finish(self, request: InferRequest, outputs: Sequence[Array]) -> Tensors:
        """Return `label` BYTES [n,k] and `score` FP32 [n,k], the highest score first."""
        params = parse_params(TextClassParams, request.params)
        return ranked(outputs, self._model.config, self._options, params)
