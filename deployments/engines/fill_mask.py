"""The likeliest tokens in place of one mask. Equals transformers' `fill-mask` pipeline on texts with one mask."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from transformers import AutoModelForMaskedLM

from deployments.engines.classes import softmax
from deployments.engines.options import FillMaskOptions
from deployments.engines.params import TextParams, parse_params
from deployments.engines.text_engine import TextEngine
from deployments.engines.texts import read_texts
from deployments.engines.tokens import Tokens
from deployments.errors import InvalidInput
from deployments.spec import ModelSpec
from deployments.types import Array, InferRequest, Item, Tensors, text_array


class FillMaskParams(TextParams):
    """Parameters of a masked language model."""

    top_k: int | None = Field(default=None, ge=1, le=1000, description="tokens to return")


class FillMask(TextEngine):
    """Any masked language model."""

    auto_class = AutoModelForMaskedLM
    reads = "mask"
    quick_bytes = 0  # up to 1,000 tokens a text are turned back into words

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        super().__init__(path, spec, device)
        self._mask_id: int = self._tokenizer.tokenizer.mask_token_id
        self._options = FillMaskOptions.model_validate(spec.options)
        example = (f"a {self._tokenizer.tokenizer.mask_token} text",)
        self.signature = replace(self.signature, inputs=(replace(self.signature.inputs[0], example=example),))

    def prepare(self, request: InferRequest) -> list[Item]:
        """Tokenise `text` BYTES [n], each with exactly one mask token."""
        params = parse_params(FillMaskParams, request.params)
        texts = read_texts(request.inputs, "text")
        encodings = self._tokenizer.encode(texts, "text", truncate=self._truncates(params))
        for index, encoding in enumerate(encodings):
            n_masks = encoding.ids.count(self._mask_id)
            if n_masks != 1:
                field, mask = f"text[{index}]", self._tokenizer.tokenizer.mask_token
                raise InvalidInput(f"{field} has {n_masks} mask tokens; write {mask} exactly once", field=field)
        return self._items(encodings)

    def finish(self, request: InferRequest, outputs: Sequence[tuple[Tokens, Array]]) -> Tensors:
        """Return `token_str`, `score`, `token` and `sequence`, each [n,k], the highest score first."""
        top_k = parse_params(FillMaskParams, request.params).top_k or self._options.top_k
        scores = softmax(np.stack([logits for _, logits in outputs]))
        token = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
        decode = self._tokenizer.tokenizer.decode
        return {
            "token_str": text_array([decode([i]) for i in token.flat]).reshape(token.shape),
            "score": np.take_along_axis(scores, token, axis=-1),
            "token": token.astype(np.int64),
            "sequence": text_array(
                [
                    decode([i if old == self._mask_id else old for old in tokens.ids], skip_special_tokens=True)
                    for (tokens, _), row in zip(outputs, token, strict=True)
                    for i in row
                ]
            ).reshape(token.shape),
        }

    def warm_up(self) -> None:
        """Run once on a mask alone."""
        self.run([self._item(Tokens([self._mask_id], [0]))])

    def _outputs(self, values: torch.Tensor, items: Sequence[Item]) -> Sequence[tuple[Tokens, Array]]:
        return [(item.data, row) for item, row in zip(items, values.cpu().numpy(), strict=True)]
