"""Text to token ids and ids to padded or packed tensors, within the model's limit. Called by `TextEngine`.

Tokenising belongs to the pool's text thread, padding and packing to its device thread; they share no state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from deployments.engines import cutting
from deployments.engines.base import unavailable
from deployments.engines.cutting import Cut, Side
from deployments.engines.shared_tokenizers import tokenizer_in
from deployments.errors import InputTooLong, InvalidInput
from deployments.spec import ModelSpec

_UNLIMITED = 2**31 - 1
Encoding: TypeAlias = Any  # tokenizers.Encoding: ids, type_ids, offsets, special_tokens_mask, sequence_ids


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised text or pair of texts."""

    ids: list[int]
    type_ids: list[int]


class TextTokenizer:
    """A model's fast tokenizer and its limit."""

    def __init__(self, path: Path, spec: ModelSpec, model: Any, max_tokens: int | None = None) -> None:
        self.tokenizer = tokenizer_in(path)  # shared: nothing may be set in it
        if not self.tokenizer.is_fast:
            raise unavailable(spec, "it has no fast tokenizer (tokenizer.json); convert it with transformers first")
        self.limit = token_limit(spec.max_tokens, max_tokens, self.tokenizer.model_max_length, position_limit(model))
        n_special = self.tokenizer.num_special_tokens_to_add(pair=True)
        if self.limit <= n_special:
            raise unavailable(spec, f"max_tokens {self.limit} leaves no room beside {n_special} special tokens")
        pad_id = self.tokenizer.pad_token_id
        self._pad_id = self.tokenizer.eos_token_id or 0 if pad_id is None else pad_id
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = self._pad_id  # decoders look for the last token that is none
        self.side: Side = self.tokenizer.truncation_side  # where it is usually cut
        self._has_type_ids = "token_type_ids" in self.tokenizer.model_input_names

    def encode(
        self,
        texts: Sequence[str],
        field: str,
        pairs: Sequence[str] | None = None,
        *,
        truncate: Side | None = None,
        cut: Cut = "longest_first",
        n_each: int = 1,
    ) -> list[Encoding]:
        """Tokenise texts, or pairs of texts.

        `truncate` is the side on which a text over the limit is cut; None: it is refused. Errors call texts
        `field[i]`, counting one that stands there `n_each` times in a row once.

        Raises:
            InputTooLong: one is over the limit and may not be cut, or cutting would leave nothing of the text.
            InvalidInput: one has no token at all.
        """
        encodings = self._whole(texts, pairs)
        too_long = [i for i, encoding in enumerate(encodings) if len(encoding.ids) > self.limit]
        for i in too_long:
            surplus = len(encodings[i].ids) - self.limit
            if truncate is None or (cut == "only_first" and encodings[i].sequence_ids.count(0) <= surplus):
                raise self._too_long(f"{field}[{i // n_each}]", len(encodings[i].ids), pairs is not None)
            encodings[i] = cutting.cut(self.tokenizer, self.limit, cut, truncate, texts[i], pairs[i] if pairs else None)
        for i, encoding in enumerate(encodings):
            if not encoding.ids:
                raise InvalidInput(f"{field}[{i}] is empty: it has no tokens", field=f"{field}[{i}]")
        return encodings

    def read_ids(self, texts: Sequence[str], field: str, *, truncate: Side | None = None) -> list[Tokens]:
        """Return token ids that a caller has made, written with spaces between; no special ones are added.

        Raises:
            InputTooLong: there are more than the limit, and they may not be cut.
            InvalidInput: one is no id of this vocabulary, or there are none.
        """
        return [self._read_ids(text, f"{field}[{index}]", truncate) for index, text in enumerate(texts)]

    def ids(self, text: str, field: str) -> list[int]:
        """Return the token ids of a row of numbers. Raises InvalidInput: one is no id of this vocabulary."""
        words = text.split()
        n_known = len(self.tokenizer)
        if not all(word.isdecimal() and len(word) < 10 and int(word) < n_known for word in words):
            raise _no_ids(field, n_known)
        return [int(word) for word in words]

    def spell(self, texts: Sequence[str], *, special: bool) -> list[Encoding]:
        """Tokenise texts of any length, with special tokens around them or without."""
        return self._whole(texts, special=special)

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """Return the text of each row of token ids."""
        # NOTE: not `tokenizer.decode`, which may tidy spaces up besides.
        return list(self.tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=skip_special))

    def _read_ids(self, text: str, field: str, truncate: Side | None) -> Tokens:
        ids = self.ids(text, field)
        if not ids:
            raise _no_ids(field, len(self.tokenizer))
        if len(ids) > self.limit and truncate is None:
            raise self._too_long(field, len(ids), False)
        ids = ids[-self.limit :] if truncate == "left" else ids[: self.limit]
        return Tokens(ids, [0] * len(ids))

    def pad(self, rows: Sequence[Tokens], device: str) -> dict[str, torch.Tensor]:
        """Return the tensors a model takes, each (rows, longest), INT64.

        Always padded on the right: positions and causal masks then give what the text alone would.
        """
        width = max(len(row.ids) for row in rows)
        batch = {
            "input_ids": [row.ids + [self._pad_id] * (width - len(row.ids)) for row in rows],
            "attention_mask": [[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows],
        }
        if self._has_type_ids:
            pad = self.tokenizer.pad_token_type_id
            batch["token_type_ids"] = [row.type_ids + [pad] * (width - len(row.ids)) for row in rows]
        return {name: torch.tensor(ids, dtype=torch.int64, device=device) for name, ids in batch.items()}

    def pack(
        self, rows: Sequence[Tokens], first_position: int, device: str, n_filler: int = 0
    ) -> dict[str, torch.Tensor]:
        """Return the tensors a model takes for all rows in one sequence and a filler behind: (1, tokens), INT64."""
        batch = {
            "input_ids": [i for row in rows for i in row.ids] + [self._pad_id] * n_filler,
            "position_ids": [i for row in rows for i in range(first_position, first_position + len(row.ids))]
            + [first_position] * n_filler,
        }
        if self._has_type_ids:
            batch["token_type_ids"] = [i for row in rows for i in row.type_ids] + [0] * n_filler
        return {name: torch.tensor([ids], dtype=torch.int64, device=device) for name, ids in batch.items()}

    def _whole(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, special: bool = True
    ) -> list[Encoding]:
        # NOTE: by the tokenizer's own core, which any thread may ask: transformers around it sets it up for each call.
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return list(self.tokenizer.backend_tokenizer.encode_batch(rows, add_special_tokens=special))

    def _too_long(self, field: str, n_tokens: int, is_pair: bool) -> InputTooLong:
        return InputTooLong(
            f"{field} has {n_tokens} tokens{' together with its pair' if is_pair else ''}; this model takes "
            f"{self.limit}. Shorten it, or send the parameter truncate=true",
            field=field,
            n_tokens=n_tokens,
            max_tokens=self.limit,
        )


def _no_ids(field: str, n_known: int) -> InvalidInput:
    return InvalidInput(f"{field}: must be token ids of this model's own vocabulary, 0 to {n_known - 1}", field=field)


def token_limit(*limits: int | None) -> int:
    """Return the smallest limit given; tokenizers without one say 1e30."""
    return min((limit for limit in limits if limit is not None and limit < _UNLIMITED), default=_UNLIMITED)


def position_limit(model: Any) -> int | None:
    """Return how many tokens the model's positions can tell apart."""
    table = _padded_positions(model)
    if table is not None:
        return table.num_embeddings - first_position(model)
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None  # relative positions: -1, or nothing


def first_position(model: Any) -> int:
    """Return the position of a text's first token; RoBERTa and its kin count from the padding index on."""
    table = _padded_positions(model)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def _padded_positions(model: Any) -> nn.Embedding | None:
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module
    return None
