"""Language models: prompts or conversations in, text out, token by token (`deployments.generation.Generator`).

Runs continuous batches where the architecture allows it, else static ones, and logs which. The cache is charged to the
pool with the weights: `cache_bytes` is fixed by the model's entry.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig

from deployments.engines import expected_signature
from deployments.engines.base import unavailable
from deployments.engines.continuous_core import ContinuousCore, agrees
from deployments.engines.kv_table import BLOCK, KeyValueTable, probe
from deployments.engines.loading import free_device, load_model, module_bytes
from deployments.engines.lora import Adapters
from deployments.engines.options import GenerationOptions
from deployments.engines.prompts import Prompts, cache_tokens, end_ids
from deployments.engines.running_batch import Core, Row, RunningBatch
from deployments.engines.sampling import Chooser
from deployments.engines.spelling import Spelled, Speller
from deployments.engines.static_core import StaticCore
from deployments.engines.tokens import position_limit, token_limit
from deployments.generation import Job, Sampling, StepReport
from deployments.spec import ModelSpec
from deployments.types import InferRequest

logger = logging.getLogger(__name__)


class TextGeneration:
    """A decoder-only language model."""

    auto_class: Any = AutoModelForCausalLM
    shares_limit = True  # prompt and generated tokens stand in one sequence

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        self.signature = expected_signature(spec)
        self.labels: tuple[str, ...] = ()
        self._spec = spec
        self._device = device
        self._options = GenerationOptions.model_validate(spec.options)
        self._model = load_model(self.auto_class, path, spec, device)
        self._prompts = Prompts(path, spec, self._options, self._model.config.get_text_config().vocab_size)
        core, held = self._make_core()
        tokenizer_limit = self._prompts._tokenizer.model_max_length
        self._prompts.limit = token_limit(spec.max_tokens, tokenizer_limit, position_limit(self._model), held)
        if self._prompts.limit < 2:
            raise unavailable(spec, f"options.cache_bytes {self._options.cache_bytes} holds {held} tokens; give more")
        spelled = Spelled(self._prompts.decoder(), self._prompts.token_bytes())
        config = self._model.generation_config or GenerationConfig()
        self._adapters = Adapters(self._model)
        ends = end_ids(config, self._prompts.end_id)
        self._batch = RunningBatch(
            core, spelled, ends, spec.batch.max_items, self._budget(spec), self._adapters.applied
        )

    @property
    def is_continuous(self) -> bool:
        """Whether sequences join a running batch."""
        return self._is_continuous

    def prepare(self, request: InferRequest) -> list[Job]:
        """Tokenise `text` BYTES [n] or `messages` BYTES [n], each a JSON list of chat messages."""
        return self._prompts.jobs(request, shares_limit=self.shares_limit)

    def adopt(self, spec: ModelSpec) -> None:
        """Let so many run together from now on."""
        self._batch.max_rows, self._batch.budget = spec.batch.max_items, self._budget(spec)

    def check_adapter(self, adapter: Any) -> None:
        """Check that a LoRA adapter was made for this model. Raises ModelUnavailable."""
        self._adapters.check(adapter)

    def step(self, joining: Sequence[Job], leaving: Sequence[Job]) -> StepReport:
        """Compute one token for each running sequence."""
        return self._batch.step(joining, leaving)

    def size_bytes(self) -> int:
        """Bytes of weights and cache."""
        return module_bytes(self._model) + self._options.cache_bytes

    def warm_up(self) -> None:
        """Generate a few tokens."""
        job = Job([0, 0], Sampling(max_tokens=2, temperature=0.0, ignore_eos=True))
        joining = [job]
        while not any(delta.is_last for delta in self._batch.step(joining, ()).deltas):
            joining = []

    def close(self) -> None:
        """Let go of weights and cache."""
        self._model = self._batch = self._adapters = None  # type: ignore[assignment]
        free_device(self._device)

    def _budget(self, spec: ModelSpec) -> int:
        return min(self._options.prompt_tokens_per_step, spec.batch.max_tokens)

    def _make_core(self) -> tuple[Core, int]:
        """Return what runs the model, and how many tokens its cache holds."""
        found = probe(self._model, self._device)
        if found is not None:
            shapes, dtype = found
            size = sum(s.heads * (s.key_dim + s.value_dim) for s in shapes) * dtype.itemsize
            held = cache_tokens(self._options.cache_bytes, size) // BLOCK * BLOCK
            table = KeyValueTable(shapes, dtype, self._device, held)
            core = ContinuousCore(self._model, table, self._device)
            if held >= 2 * BLOCK and self._agrees(core):
                table.clear()
                self._is_continuous = True
                return core, held
        self._is_continuous = False
        logger.warning(
            "model %s: its architecture (%s) does not run in continuous batches; it runs in static ones",
            self._spec.key,
            self._model.config.model_type,
        )
        return self._static_core()

    def _static_core(self) -> tuple[Core, int]:
        config = self._model.config.get_text_config()
        layers, hidden = config.num_hidden_layers, config.hidden_size
        held = cache_tokens(self._options.cache_bytes, 2 * layers * hidden * self._model.dtype.itemsize)
        return StaticCore(self._model, self._device, held), held

    def _agrees(self, core: ContinuousCore) -> bool:
        size = self._model.config.get_text_config().vocab_size
        prompts = [[(7 * i + 3) % size for i in range(n)] for n in (5, 9)]
        rows = [Row(Job(ids, Sampling(2)), Chooser(Sampling(2), ids), Speller(lambda _: "", ())) for ids in prompts]
        try:
            return agrees(self._model, core, rows)
        except Exception:
            logger.debug("model %s: the check of continuous batches raised", self._spec.key, exc_info=True)
            return False
