"""Logits to tokens, each row by its own wishes and its own random numbers, whatever shares the batch with it.

Called by the generating engines in the device thread. A row draws one uniform number a token from its own generator,
so a seed gives the same text again in any company.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from deployments.generation import Sampling

_GREEDY = 1e-4  # temperatures up to this take the likeliest token: dividing by them would overflow
_FIRST_LOOK = 256  # likeliest tokens looked at before all are sorted


@dataclass(slots=True)
class Chooser:
    """How one sequence chooses, and what it has chosen so far."""

    sampling: Sampling
    prompt: Sequence[int]
    offset: int = 0  # sequences of one request draw differently from one seed
    rng: random.Random = field(init=False)
    counts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        self.rng = random.Random() if seed is None else random.Random(f"{seed}/{self.offset}")  # noqa: S311

    @property
    def is_plain(self) -> bool:
        """Whether logits are taken as they come."""
        wish = self.sampling
        return not (wish.presence_penalty or wish.frequency_penalty or wish.logit_bias) and wish.repetition_penalty == 1


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; its log probability and the likeliest tokens' where the row asked for them."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def choose(logits: torch.Tensor, rows: Sequence[Chooser]) -> list[Choice | None]:
    """Choose one token a row from `logits` (rows, vocabulary); None where a row's logits are not numbers."""
    logits = logits.float()
    adjusted = _adjusted(logits, rows)
    tokens = adjusted.argmax(dim=-1).tolist()
    drawing = [i for i, row in enumerate(rows) if row.sampling.temperature > _GREEDY]
    if drawing:
        drawn = _draw(adjusted if len(drawing) == len(rows) else adjusted[drawing], [rows[i] for i in drawing])
        for i, token in zip(drawing, drawn, strict=True):
            tokens[i] = token
    is_sound = (~torch.isnan(adjusted).any(dim=-1)).tolist()
    choices: list[Choice | None] = []
    for i, row in enumerate(rows):
        row.counts[tokens[i]] += 1
        choices.append(_choice(logits[i], tokens[i], row.sampling.logprobs) if is_sound[i] else None)
    return choices


def _adjusted(logits: torch.Tensor, rows: Sequence[Chooser]) -> torch.Tensor:
    """Return the logits with each row's penalties and biases."""
    if all(row.is_plain for row in rows):
        return logits
    logits = logits.clone()
    for line, row in zip(logits, rows, strict=True):
        wish = row.sampling
        if wish.repetition_penalty != 1:
            seen = torch.tensor(list({*row.prompt, *row.counts}), device=line.device)
            values = line[seen]
            penalty = wish.repetition_penalty
            line[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if row.counts and (wish.presence_penalty or wish.frequency_penalty):
            used = torch.tensor(list(row.counts), device=line.device)
            times = torch.tensor(list(row.counts.values()), dtype=line.dtype, device=line.device)
            line[used] -= wish.presence_penalty + wish.frequency_penalty * times
        if wish.logit_bias:
            biased = torch.tensor(list(wish.logit_bias), device=line.device)
            line[biased] += torch.tensor(list(wish.logit_bias.values()), dtype=line.dtype, device=line.device)
    return logits


def _draw(logits: torch.Tensor, rows: Sequence[Chooser]) -> list[int]:
    """Draw a token a row by its temperature, within its top_k and top_p."""
    device = logits.device
    temperatures = torch.tensor([row.sampling.temperature for row in rows], device=device)
    probabilities = torch.softmax(logits / temperatures[:, None], dim=-1)
    uniform = torch.tensor([row.rng.random() for row in rows], dtype=torch.float64, device=device)[:, None]
    # Each row takes its own way whoever is beside it: the two ways draw different tokens from the same number.
    is_cut = [row.sampling.top_p < 1 or row.sampling.top_k > 0 for row in rows]
    cut, whole = ([i for i, one in enumerate(is_cut) if one is wanted] for wanted in (True, False))
    drawn = [0] * len(rows)
    if whole:
        for i, token in zip(whole, _invert(probabilities[whole].double(), uniform[whole]).tolist(), strict=True):
            drawn[i] = token
    if cut:
        for i, token in zip(cut, _draw_cut(probabilities[cut], uniform[cut], [rows[i] for i in cut]), strict=True):
            drawn[i] = token
    return drawn


def _draw_cut(probabilities: torch.Tensor, uniform: torch.Tensor, rows: Sequence[Chooser]) -> list[int]:
    """Draw from the likeliest tokens of each row: its top_k, and as many as make up its top_p."""
    device, size = probabilities.device, probabilities.shape[-1]
    top_k = torch.tensor([min(row.sampling.top_k or size, size) for row in rows], device=device)[:, None]
    top_p = torch.tensor([row.sampling.top_p for row in rows], device=device)[:, None]
    width = min(size, _FIRST_LOOK)
    while True:
        values, ids = probabilities.topk(width)
        before = values.cumsum(-1) - values
        enough = ((values.sum(-1, keepdim=True) >= top_p) & (top_p < 1)) | (top_k <= width)
        if width == size or bool(enough.all()):
            break
        width = min(size, width * 16)
    rank = torch.arange(width, device=device)
    kept = torch.where((before < top_p) & (rank < top_k), values, torch.zeros_like(values))
    place = _invert(kept.double(), uniform)
    tokens: list[int] = ids.gather(-1, place[:, None])[:, 0].tolist()
    return tokens


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return where each row's running total passes its uniform number; never a place without weight."""
    total = weights.cumsum(-1)
    place = torch.searchsorted(total, uniform * total[:, -1:], right=True)[:, 0]
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
    return torch.minimum(place, last)


def _choice(logits: torch.Tensor, token: int, n_top: int | None) -> Choice:
    if n_top is None:
        return Choice(token)
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = logprobs.topk(min(n_top, logprobs.shape[-1])) if n_top else (logprobs[:0], logprobs[:0])
    top = tuple((int(i), _finite(v)) for i, v in zip(ids.tolist(), values.tolist(), strict=True))
    return Choice(token, _finite(logprobs[token].item()), top)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else -9999.0
