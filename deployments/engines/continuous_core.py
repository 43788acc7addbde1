"""Decoders run with a `KeyValueTable`: rows join and leave between any two tokens, prompts are computed by pieces.

Used by `text_generation` for every architecture that caches plain keys and values of all tokens and passes `agrees`.
"""

import inspect
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from deployments.engines.kv_table import KeyValueTable
from deployments.engines.running_batch import Row

_CHECKED = (5, 9)  # lengths of the two prompts of the self-check


class ContinuousCore:
    """A `Core` over one model and its table."""

    joins_late = True

    def __init__(self, model: Any, table: KeyValueTable, device: str) -> None:
        self._model = model
        self._table = table
        self._device = device
        self._keeps_few = "logits_to_keep" in inspect.signature(model.forward).parameters

    def fits(self, n_rows: int, width: int) -> bool:
        """Return whether the table may hold that many rows of that many tokens."""
        return self._table.fits(n_rows, width)

    def group(self, row: Row) -> Hashable:
        """Any rows may start together."""
        return None

    def reserve(self, n_rows: int, width: int, n_used: int) -> None:
        """Make room in the table."""
        self._table.reserve(n_rows, width, n_used)

    def start(self, rows: Sequence[Row], first: int, budget: int) -> torch.Tensor | None:
        """Compute the next piece of the rows' tokens; only a row that starts alone is cut into several."""
        n_tokens = max(row.length - row.n_cached for row in rows)
        if len(rows) == 1:
            n_tokens = min(n_tokens, max(budget, 1))
        pieces = [row.ids[row.n_cached : row.n_cached + n_tokens] for row in rows]
        last = [len(piece) - 1 for piece in pieces]
        padded = [piece + [0] * (n_tokens - len(piece)) for piece in pieces]
        logits = self._call(first, padded, [row.n_cached for row in rows], last)
        for row, piece in zip(rows, pieces, strict=True):
            row.n_cached += len(piece)
        return logits if all(row.n_cached == row.length for row in rows) else None

    def decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Compute each row's newest token."""
        newest = [[row.new[-1]] for row in rows]
        logits = self._call(0, newest, [row.length - 1 for row in rows], [0] * len(rows))
        for row in rows:
            row.n_cached = row.length
        return logits

    def keep(self, order: Sequence[int]) -> None:
        """Copy rows over those that are gone."""
        for target, source in enumerate(order):
            self._table.move(source, target)

    def _call(self, first: int, ids: list[list[int]], starts: list[int], last: list[int]) -> torch.Tensor:
        """Run the model; return each row's logits at its place `last`."""
        tokens = torch.tensor(ids, dtype=torch.int64, device=self._device)
        begin = torch.tensor(starts, dtype=torch.int64, device=self._device)
        positions = begin[:, None] + torch.arange(tokens.shape[1], device=self._device)
        places = sorted(set(last))
        few = {"logits_to_keep": torch.tensor(places, device=self._device)} if self._keeps_few else {}
        with torch.inference_mode():
            logits = self._model(
                input_ids=tokens,
                attention_mask=self._table.aim(first, positions),
                position_ids=positions,
                past_key_values=self._table,
                use_cache=True,
                **few,
            ).logits
            column = [places.index(place) for place in last] if self._keeps_few else last
            result: torch.Tensor = logits[torch.arange(len(ids), device=self._device), column]
            return result


def agrees(model: Any, core: ContinuousCore, rows: Sequence[Row]) -> bool:
    """Return whether two ragged rows run together give what the model gives for each alone, prompt and next token.

    An architecture that reads masks, positions or its cache in a way of its own is found out here, before it answers.
    """
    core.reserve(len(rows), max(row.length for row in rows) + 1, 0)
    joint = [core.start(rows, 0, sum(row.length for row in rows))]
    for row in rows:
        row.new.append(row.job.prompt[0])
    joint.append(core.decode(rows))
    for index, row in enumerate(rows):
        with torch.inference_mode():
            alone = model(input_ids=torch.tensor([row.ids], device=core._device), use_cache=False).logits[0]
        for logits, expected in zip(joint, (alone[-2], alone[-1]), strict=True):
            if logits is None or not _close(logits[index].float(), expected.float(), model.dtype):
                return False
    return True


def _close(given: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    tolerance = 0.01 if dtype == torch.float32 else 0.2
    return bool((given - expected).abs().max() <= tolerance * expected.std().clamp_min(1e-6))
