"""Texts to classes named in the request, by entailment. Equals transformers' `zero-shot-classification` pipeline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field
from transformers import AutoModelForSequenceClassification

from deployments.engines.base import unavailable
from deployments.engines.classes import softmax
from deployments.engines.options import ZeroShotOptions
from deployments.engines.params import TextParams, parse_params
from deployments.engines.text_engine import TextEngine
from deployments.engines.texts import read_texts
from deployments.errors import InputTooLong, InvalidInput
from deployments.spec import ModelSpec
from deployments.types import Array, InferRequest, Item, Tensors

_MAX_PAIRS = 4096  # a small body can name many pairs: 1000 texts and 1000 labels are a million


class ZeroShotParams(TextParams):
    """Parameters of a zero-shot classifier."""

    multi_label: bool = Field(default=False, description="score each label on its own: several may be true")
    hypothesis_template: str | None = Field(default=None, description="a sentence with {} for the label")


class ZeroShotClassification(TextEngine):
    """A model trained on natural language inference: one run for each text with each label."""

    auto_class = AutoModelForSequenceClassification

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        super().__init__(path, spec, device)
        named = {str(name).lower(): index for name, index in self._model.config.label2id.items()}
        entailment = next((index for name, index in named.items() if name.startswith("entail")), None)
        if entailment is None:
            raise unavailable(
                spec, f"none of its classes {sorted(named)} is entailment; it needs a model trained on NLI"
            )
        self._entailment: int = entailment
        self._contradiction = -1 if entailment == 0 else 0
        self._options = ZeroShotOptions.model_validate(spec.options)

    def prepare(self, request: InferRequest) -> list[Item]:
        """Tokenise each of `text` BYTES [n] with a sentence about each of `candidate_labels` BYTES [m]."""
        params = parse_params(ZeroShotParams, request.params)
        texts = read_texts(request.inputs, "text")
        labels = read_texts(request.inputs, "candidate_labels")
        if len(texts) * len(labels) > _MAX_PAIRS:
            raise InputTooLong(
                f"{len(texts)} texts with {len(labels)} candidate_labels make {len(texts) * len(labels)} pairs; "
                f"send at most {_MAX_PAIRS} at once",
                field="candidate_labels",
            )
        hypotheses = [self._template(params).replace("{}", label) for label in labels]
        encodings = self._tokenizer.encode(
            [text for text in texts for _ in labels],
            "text",
            hypotheses * len(texts),
            truncate=self._truncates(params),
            cut="only_first",
            n_each=len(labels),
        )
        return self._items(encodings)

    def finish(self, request: InferRequest, outputs: Sequence[Array]) -> Tensors:
        """Return `label` BYTES [n,m] and `score` FP32 [n,m], the highest score first."""
        labels = request.inputs["candidate_labels"]
        logits = np.stack(outputs).reshape(-1, labels.size, len(outputs[0]))
        if parse_params(ZeroShotParams, request.params).multi_label or labels.size == 1:
            scores = softmax(logits[..., [self._contradiction, self._entailment]])[..., 1]
        else:
            scores = softmax(logits[..., self._entailment])
        order = np.argsort(scores, axis=-1)[:, ::-1]
        return {"label": labels[order], "score": np.take_along_axis(scores, order, axis=-1).astype(np.float32)}

    def _template(self, params: ZeroShotParams) -> str:
        template = params.hypothesis_template or self._options.hypothesis_template
        if "{}" not in template:
            raise InvalidInput(
                f"hypothesis_template {template!r} has no {{}} where the label goes", field="hypothesis_template"
            )
        return template
