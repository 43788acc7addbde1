"""all-MiniLM-L6-v2 as every peer runs it: tokenise, pad to the longest, mean pooling, length 1. Plain transformers."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

MAX_TOKENS = 256


class Encoder:
    """The model in memory; `threads` of torch, or as many as BENCH_THREADS says, or torch's own choice."""

    def __init__(self, threads: int | None = None) -> None:
        threads = threads or int(os.environ.get("BENCH_THREADS", "0"))
        if threads:
            torch.set_num_threads(threads)
        path = os.environ["BENCH_MODEL"]
        logging.disable_progress_bar()
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        self.embed(["warm up"])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row of 384 numbers a text."""
        batch = self._tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            vectors = (hidden * mask).sum(1) / mask.sum(1)
            return np.asarray(torch.nn.functional.normalize(vectors, dim=1).numpy())
