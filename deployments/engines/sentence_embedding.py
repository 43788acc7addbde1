"""Texts to vectors: a transformer, pooling, and L2 normalisation where the model asks for it.

Equals sentence-transformers' `encode` on folders with its files, and plain mean pooling on others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from transformers import AutoModel

from deployments.engines.base import unavailable
from deployments.engines.options import EmbeddingOptions
from deployments.engines.params import TextParams, parse_params
from deployments.engines.sentence_files import read_sentence_files
from deployments.engines.text_engine import TextEngine
from deployments.engines.texts import read_texts
from deployments.spec import ModelSpec
from deployments.types import Array, InferRequest, Item, Signature, Tensors


class EmbeddingParams(TextParams):
    """Parameters of an embedding model."""

    token_ids: bool = Field(
        default=False,
        description="texts are token ids of the model's vocabulary, with spaces between; taken as they are",
    )
    normalize: bool | None = Field(default=None, description="scale to length 1; default: as the model does")


class SentenceEmbedding(TextEngine):
    """Any encoder whose `last_hidden_state` is pooled to one vector a text."""

    auto_class: ClassVar[Any] = AutoModel
    reads = "tokens"
    field = "last_hidden_state"
    may_lack = "pooler"  # a head for another purpose: pooling here reads the token vectors

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        options = EmbeddingOptions.model_validate(spec.options)
        try:
            self._files = read_sentence_files(path, options.pooling)
        except ValueError as exc:
            raise unavailable(spec, str(exc)) from None
        super().__init__(self._files.folder, spec, device, self._files.max_tokens)
        self._pool = _POOL[self._files.pooling]
        self._normalize = self._files.normalize if options.normalize is None else options.normalize
        self.signature = self._with_size(self.signature)

    def prepare(self, request: InferRequest) -> list[Item]:
        """Tokenise `text` BYTES [n]."""
        params = parse_params(EmbeddingParams, request.params)
        if params.token_ids:
            texts = read_texts(request.inputs, "text")
            tokens = self._tokenizer.read_ids(texts, "text", truncate=self._truncates(params))
            return [self._item(one) for one in tokens]
        return self._text_items(request, "text", params, self._files.default_prompt)

    def finish(self, request: InferRequest, outputs: Sequence[Array]) -> Tensors:
        """Return `embedding` FP32 [n,d]."""
        wanted = parse_params(EmbeddingParams, request.params).normalize
        vectors = np.stack(outputs)
        return {"embedding": unit(vectors) if (self._normalize if wanted is None else wanted) else vectors}

    def _text_items(self, request: InferRequest, name: str, params: TextParams, prompt: str) -> list[Item]:
        texts = [prompt + text for text in read_texts(request.inputs, name)]
        if self._files.lower_case:
            texts = [text.lower() for text in texts]
        return self._items(self._tokenizer.encode(texts, name, truncate=self._truncates(params)))

    def _outputs(self, values: torch.Tensor, items: Sequence[Item]) -> Sequence[Array]:
        lengths = torch.tensor([item.cost for item in items], device=values.device)
        return list(self._pool(values, lengths).cpu().numpy())

    def _with_size(self, signature: Signature) -> Signature:
        (output,) = signature.outputs
        return Signature(signature.inputs, (replace(output, shape=(-1, self._model.config.hidden_size)),))


def unit(vectors: Array) -> Array:
    """Scale rows to length 1; a row of zeros stays one."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def _mean(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.segment_reduce(hidden, "mean", lengths=lengths)


def _max(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.segment_reduce(hidden, "max", lengths=lengths)


def _cls(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return hidden[lengths.cumsum(0) - lengths]


def _last(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return hidden[lengths.cumsum(0) - 1]


# The tokens of all texts (tokens, d), and how many each text has, to (texts, d).
_POOL: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "cls": _cls,
    "max": _max,
    "last": _last,
}
