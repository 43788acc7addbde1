"""Any architecture that transformers can generate with, in static batches: rows start together and none joins later.

For encoder-decoder models, and for decoders whose cache is not plain keys and values (sliding windows, state spaces).
Rows that end or leave give their memory back at once. Used by `text_generation` and `text2text_generation`.
"""

import inspect
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from deployments.engines.running_batch import Row


class StaticCore:
    """A `Core` that keeps the model's own cache. `max_tokens` bounds rows × width."""

    joins_late = False

    def __init__(self, model: Any, device: str, max_tokens: int, prefix: Sequence[int] = ()) -> None:
        self._model = model
        self._device = device
        self._max_tokens = max_tokens
        self._prefix = list(prefix)  # what an encoder-decoder model's own text begins with
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._cache: Any = None
        self._mask: Any = None  # (rows, tokens): of the text so far, or of an encoder's input
        self._encoded: Any = None

    def fits(self, n_rows: int, width: int) -> bool:
        """Return whether the cache may hold that many rows of that many tokens."""
        return n_rows * width <= self._max_tokens

    def group(self, row: Row) -> Hashable:
        """Rows of an encoder-decoder model must have generated equally much (none, unless they were preempted)."""
        return len(row.new) if self._is_encoder_decoder else None

    def reserve(self, n_rows: int, width: int, n_used: int) -> None:
        """Do nothing: the model's cache grows by itself."""

    def start(self, rows: Sequence[Row], first: int, budget: int) -> torch.Tensor | None:
        """Compute all prompts at once."""
        with torch.inference_mode():
            logits = self._encode(rows) if self._is_encoder_decoder else self._read(rows)
        for row in rows:
            row.n_cached = row.length
        return logits

    def decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Compute each row's newest token."""
        newest = torch.tensor([[row.new[-1]] for row in rows], dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            logits = self._step(newest)
        for row in rows:
            row.n_cached = row.length
        return logits

    def keep(self, order: Sequence[int]) -> None:
        """Select rows; without any left, let go of the cache."""
        if not order or self._cache is None:
            self._cache = self._mask = self._encoded = None
            return
        chosen = torch.tensor(order, dtype=torch.int64, device=self._device)
        self._cache.reorder_cache(chosen)
        self._mask = self._mask[chosen]
        if self._encoded is not None:
            self._encoded.last_hidden_state = self._encoded.last_hidden_state[chosen]

    def _read(self, rows: Sequence[Row]) -> torch.Tensor:
        """Compute the prompts of decoders, padded on the left so that all end together."""
        tokens, self._mask = self._padded([row.ids for row in rows], left=True)
        self._cache = None
        return self._step(tokens)

    def _encode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Compute an encoder's inputs, and the first tokens of the texts made of them."""
        tokens, self._mask = self._padded([list(row.job.prompt) for row in rows], left=False)
        self._encoded = self._model.get_encoder()(input_ids=tokens, attention_mask=self._mask, return_dict=True)
        self._cache = None
        begun = [[*self._prefix, *row.new] for row in rows]
        return self._step(torch.tensor(begun, dtype=torch.int64, device=self._device))

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._is_encoder_decoder:
            inputs = {"encoder_outputs": self._encoded, "attention_mask": self._mask, "decoder_input_ids": tokens}
        else:
            if self._cache is not None:
                self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
            inputs = {"input_ids": tokens, "attention_mask": self._mask}
            if self._takes_positions:
                positions = (self._mask.cumsum(-1) - 1).clamp_min(0)
                inputs["position_ids"] = positions[:, -tokens.shape[1] :]
        out = self._model(**inputs, past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        result: torch.Tensor = out.logits[:, -1]
        return result

    def _padded(self, rows: Sequence[list[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        pads = [[0] * (width - len(row)) for row in rows]
        ids = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
        mask = [
            [0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad)
            for row, pad in zip(rows, pads, strict=True)
        ]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)
