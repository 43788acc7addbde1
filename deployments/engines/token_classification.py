"""A class for each token of a text. Equals transformers' `token-classification` pipeline without aggregation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, JsonValue
from transformers import AutoModelForTokenClassification

from deployments.engines.classes import class_names, softmax
from deployments.engines.params import TextParams, parse_params
from deployments.engines.text_engine import TextEngine
from deployments.engines.texts import read_texts
from deployments.engines.tokens import Tokens
from deployments.spec import ModelSpec
from deployments.types import Array, InferRequest, Item, Tensors, text_array

_OUTSIDE = "O"


class TokenClassParams(TextParams):
    """Parameters of a token classifier."""

    aggregation_strategy: Literal["none"] = Field(default="none", description="tokens are returned one by one")


@dataclass(frozen=True, slots=True)
class Tagged(Tokens):
    """A tokenised text that remembers where its tokens came from."""

    text: str
    offsets: list[tuple[int, int]]  # characters, end excluded
    is_special: list[int]


class TokenClassification(TextEngine):
    """Any token classification model."""

    auto_class = AutoModelForTokenClassification
    reads = "tokens"

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        super().__init__(path, spec, device)
        self.labels = class_names(self._model.config)

    def prepare(self, request: InferRequest) -> list[Item]:
        """Tokenise `text` BYTES [n]."""
        params = parse_params(TokenClassParams, request.params)
        texts = read_texts(request.inputs, "text")
        encodings = self._tokenizer.encode(texts, "text", truncate=self._truncates(params))
        return [
            self._item(Tagged(e.ids, e.type_ids, text, e.offsets, e.special_tokens_mask))
            for text, e in zip(texts, encodings, strict=True)
        ]

    def finish(self, request: InferRequest, outputs: Sequence[tuple[Tagged, Array]]) -> Tensors:
        """Return `entities` BYTES [n], each a JSON array of {entity, score, index, word, start, end}."""
        found = [json.dumps(self._entities(tagged, logits), ensure_ascii=False) for tagged, logits in outputs]
        return {"entities": text_array(found)}

    def _outputs(self, values: torch.Tensor, items: Sequence[Item]) -> Sequence[tuple[Tagged, Array]]:
        ends = np.cumsum([item.cost for item in items])
        return [(i.data, logits) for i, logits in zip(items, np.split(values.cpu().numpy(), ends[:-1]), strict=True)]

    def _entities(self, tagged: Tagged, logits: Array) -> list[dict[str, JsonValue]]:
        scores = softmax(logits)
        best = scores.argmax(axis=-1)
        return [
            {
                "entity": self.labels[best[index]],
                "score": float(scores[index, best[index]]),
                "index": index,
                "word": self._word(tagged, index),
                "start": tagged.offsets[index][0],
                "end": tagged.offsets[index][1],
            }
            for index in np.flatnonzero(np.logical_not(tagged.is_special)).tolist()
            if self.labels[best[index]] != _OUTSIDE
        ]

    def _word(self, tagged: Tagged, index: int) -> str:
        tokenizer = self._tokenizer.tokenizer
        if tagged.ids[index] == tokenizer.unk_token_id:
            start, end = tagged.offsets[index]
            return tagged.text[start:end]
        return str(tokenizer.convert_ids_to_tokens(tagged.ids[index]))
