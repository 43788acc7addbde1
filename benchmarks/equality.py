"""Before anything is measured: does every side give the same embeddings? A fast wrong answer is no answer."""

import os
from collections.abc import Sequence

import numpy as np

from benchmarks import workload
from benchmarks.servers.encoder import Encoder
from benchmarks.side import Side, ask, common_env
from benchmarks.wire import Vectors

COSINE = 0.9999  # fp32 of the same model: only the order of sums differs
HALF_COSINE = 0.999  # half precision, as issue 3 allows for the fastest engine
_SAMPLE = 12


def sample() -> list[str]:
    """Return texts of every kind, and two that a tokenizer could get wrong."""
    texts = [text for kind in ("short", "mixed") for (text,) in workload.requests(kind, _SAMPLE)]
    return [*texts, "Grüße aus Köln — 東京 🚀", "UPPER lower  spaces\tand\nlines."]


def reference() -> Vectors:
    """Return the embeddings of the sample by plain transformers, a text at a time."""
    os.environ |= common_env()
    encoder = Encoder()
    return np.concatenate([encoder.embed([text]) for text in sample()])


def check(side: Side, expected: Vectors, least: float = COSINE) -> float:
    """Ask one text at a time and all at once; return the smallest cosine. Raises RuntimeError below `least`."""
    texts = sample()
    alone = np.concatenate([ask(side, [text]) for text in texts])
    worst = min(_cosine(alone, expected), _cosine(ask(side, texts), expected))
    if worst < least:
        raise RuntimeError(f"{side.name}: its embeddings are not those of the model (smallest cosine {worst:.5f})")
    return worst


def _cosine(left: Vectors, right: Vectors) -> float:
    if left.shape != right.shape:
        return -1.0
    lengths: Sequence[float] = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / lengths).min())
