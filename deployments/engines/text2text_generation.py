"""Encoder-decoder models (translation, summaries, titles): text in, another text out, token by token; static batches.

The same contract as `text_generation`, over `AutoModelForSeq2SeqLM`.
"""

from typing import Any

from transformers import AutoModelForSeq2SeqLM

from deployments.engines.prompts import cache_tokens
from deployments.engines.running_batch import Core
from deployments.engines.static_core import StaticCore
from deployments.engines.text_generation import TextGeneration


class Text2TextGeneration(TextGeneration):
    """A sequence-to-sequence model."""

    auto_class: Any = AutoModelForSeq2SeqLM
    shares_limit = False  # prompt and generated text are two sequences, each with the limit of its own

    def _make_core(self) -> tuple[Core, int]:
        self._is_continuous = False
        config, generation = self._model.config, self._model.generation_config
        layers: int = getattr(config, "decoder_layers", None) or config.num_decoder_layers
        # Keys and values of the text so far and of the encoded input.
        held = cache_tokens(self._options.cache_bytes, 4 * layers * config.hidden_size * self._model.dtype.itemsize)
        start = generation.decoder_start_token_id if generation is not None else None
        start = config.decoder_start_token_id if start is None else start
        forced = generation.forced_bos_token_id if generation is not None else None
        prefix = [token for token in (start, forced) if token is not None]
        return StaticCore(self._model, self._device, held, prefix), held
