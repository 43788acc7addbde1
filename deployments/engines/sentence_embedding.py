"""Texts to vectors: a transformer, pooling, and L2 normalisation where the model asks for it.

Equals sentence-transformers' `encode` on folders with its files, and plain mean pooling on others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from deployments.engines.tokens import Tokens
from deployments.errors import InputTooLong, InvalidInput
from deployments.spec import ModelSpec
from deployments.types import Array, InferRequest, Item, Signature, Tensors

MAX_BYTES = 16 * 2**20  # of token vectors in one answer


class EmbeddingParams(TextParams):
    """Parameters of an embedding model."""

    pooled: bool = Field(
        default=True,
        description="false: a vector a token as the model made it, `embedding` [all tokens, d], and `n_tokens` [n]",
    )
    prompt_name: str | None = Field(
        default=None, description="one of the model's own prompts; default: as its files say"
    )

    token_ids: bool = Field(
        default=False,
        description="texts are token ids of the model's vocabulary, with spaces between; taken as they are",
    )
    normalize: bool | None = Field(default=None, description="scale to length 1; default: as the model does")


@dataclass(frozen=True, slots=True)
class Unpooled(Tokens):
    """A tokenised text whose token vectors are wanted."""


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
        self.facts = {**self.facts, "pooling": self._files.pooling}

    def prepare(self, request: InferRequest) -> list[Item]:
        """Tokenise `text` BYTES [n]."""
        params = parse_params(EmbeddingParams, request.params)
        if params.token_ids:
            texts = read_texts(request.inputs, "text")
            tokens = self._tokenizer.read_ids(texts, "text", truncate=self._truncates(params))
            items = [self._item(one) for one in tokens]
        else:
            items = self._text_items(request, "text", params, self._named_prompt(params.prompt_name))
        return items if params.pooled else self._unpooled(items)

    def finish(self, request: InferRequest, outputs: Sequence[Array]) -> Tensors:
        """Return `embedding` FP32 [n,d]; not pooled, [all tokens,d], and `n_tokens` INT64 [n]."""
        params = parse_params(EmbeddingParams, request.params)
        if not params.pooled:
            vectors = np.concatenate(outputs)
            n_tokens = np.array([len(rows) for rows in outputs], np.int64)
            return {"embedding": unit(vectors) if params.normalize else vectors, "n_tokens": n_tokens}
        vectors = np.stack(outputs)
        wanted = self._normalize if params.normalize is None else params.normalize
        return {"embedding": unit(vectors) if wanted else vectors}

    def _text_items(self, request: InferRequest, name: str, params: TextParams, prompt: str) -> list[Item]:
        texts = self._with_prompt(read_texts(request.inputs, name), prompt)
        return self._items(self._tokenizer.encode(texts, name, truncate=self._truncates(params)))

    def _with_prompt(self, texts: Sequence[str], prompt: str) -> list[str]:
        whole = [prompt + text for text in texts]
        return [text.lower() for text in whole] if self._files.lower_case else whole

    def _spelled(self, texts: Sequence[str], prompt_name: str | None) -> list[str]:
        return self._with_prompt(texts, self._named_prompt(prompt_name))

    def _named_prompt(self, name: str | None) -> str:
        if name is None:
            return self._files.default_prompt
        if name not in self._files.prompts:
            known = ", ".join(sorted(self._files.prompts)) or "none"
            raise InvalidInput(f"prompt_name: this model has no prompt {name!r}; it has: {known}", field="prompt_name")
        return self._files.prompts[name]

    def _unpooled(self, items: Sequence[Item]) -> list[Item]:
        n_bytes = 4 * self._model.config.hidden_size * sum(item.cost for item in items)
        if n_bytes > MAX_BYTES:
            raise InputTooLong(
                f"text: its token vectors take {n_bytes} bytes, an answer {MAX_BYTES}; send fewer or shorter texts",
                field="text",
                max_bytes=MAX_BYTES,
            )
        return [replace(item, data=Unpooled(item.data.ids, item.data.type_ids)) for item in items]

    def _outputs(self, values: torch.Tensor, items: Sequence[Item]) -> Sequence[Array]:
        lengths = torch.tensor([item.cost for item in items], device=values.device)
        pooled = self._pool(values, lengths).cpu().numpy()
        ends = lengths.cumsum(0).tolist()
        return [
            values[end - item.cost : end].cpu().numpy() if isinstance(item.data, Unpooled) else vector
            for item, end, vector in zip(items, ends, pooled, strict=True)
        ]

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
