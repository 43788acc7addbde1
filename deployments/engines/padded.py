"""Texts of a batch run as a rectangle, each padded to the longest: what every transformers model takes.

Called by `TextEngine` where an architecture cannot be packed (`packed.py`).
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch

from deployments.engines.tokens import TextTokenizer, Tokens

# What a family reads of a model's output: a row a text, the row of each text's mask token, or a row a token.
Reads: TypeAlias = Literal["text", "mask", "tokens"]


class PaddedModel:
    """A model behind right-padded batches."""

    is_packed = False

    def __init__(self, model: Any, tokenizer: TextTokenizer, device: str, reads: Reads, field: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._reads = reads
        self._field = field  # of the model's output

    def __call__(self, rows: Sequence[Tokens]) -> torch.Tensor:
        """Return (texts, x), or (all tokens, x) in the order of the rows where the family reads tokens."""
        batch = self._tokenizer.pad(rows, self._device)
        values: torch.Tensor = self._model(**batch)[self._field]
        if self._reads == "mask":
            # The vocabulary's logits at every other position would be most of the memory, and of no use.
            return values[batch["input_ids"] == self._tokenizer.tokenizer.mask_token_id]
        if self._reads == "tokens":
            return values[batch["attention_mask"] == 1]
        return values
