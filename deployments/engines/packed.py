"""Texts of a batch run as one sequence without padding: attention stays inside each text, positions start anew.

`forward_for` gives `TextEngine` this or, where an architecture would answer otherwise, `PaddedModel`: it tries both on
a few made-up texts, so no list of architectures has to be kept.
"""

import logging
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from deployments.engines import laid_out, packed_attention
from deployments.engines.padded import PaddedModel, Reads
from deployments.engines.tokens import TextTokenizer, Tokens, first_position
from deployments.spec import ModelSpec

logger = logging.getLogger(__name__)

_TRIAL_LENGTHS = (9, 2, 24, 9, 6)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest answer, or of 1

# By kind of model: whether packing answered right. A trial costs half of a load, and one speaks for every model of a
# kind, and for the same model's next load.
_TRIED: dict[str, bool] = {}


class PackedModel:
    """A model behind packed batches; it changes the model's attention until `undo` is called."""

    is_packed = True

    def __init__(self, model: Any, tokenizer: TextTokenizer, device: str, reads: Reads, field: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._reads = reads
        self._field = field  # of the model's output
        self._first_position = first_position(model)
        self._kept = torch.empty(0)  # tokens of this batch that go on from the layers to the head
        self._like = packed_attention.compute(torch.empty(0, dtype=model.dtype, device=device))
        self._layers = _layers(model)
        self._usual: str = model.config._attn_implementation
        model.set_attn_implementation(packed_attention.NAME)
        self._hook = None if reads == "tokens" else self._layers.register_forward_hook(self._narrow)

    def __call__(self, rows: Sequence[Tokens]) -> torch.Tensor:
        """Return (texts, x), or (all tokens, x) in the order of the rows where the family reads tokens."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        lengths = [len(rows[i].ids) for i in order]
        batch = self._tokenizer.pack([rows[i] for i in order], self._first_position, self._device)
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        if self._reads == "text":
            self._kept = starts.to(self._device)
        elif self._reads == "mask":
            self._kept = (batch["input_ids"][0] == self._tokenizer.tokenizer.mask_token_id).nonzero()[:, 0]
        segments = packed_attention.segments(lengths, self._like)
        values: torch.Tensor = self._model(**batch, segments=segments)[self._field]
        back = torch.tensor(order).argsort().tolist()
        if self._reads == "tokens":
            spans = [torch.arange(lengths[i]) + starts[i] for i in back]
            return values[0, torch.cat(spans).to(self._device)]
        return values.flatten(0, -2)[back]

    def lay_out(self) -> None:
        """Have the layers' weights laid out for this CPU: faster, but no longer shared with other processes."""
        laid_out.lay_out(self._layers)

    def take_back(self) -> None:
        """Have the weights in the plain layers again."""
        laid_out.undo(self._layers)

    def undo(self) -> None:
        """Leave the model as it was."""
        self.take_back()
        if self._hook is not None:
            self._hook.remove()
        self._model.set_attn_implementation(self._usual)

    def _narrow(self, layers: nn.Module, args: Any, output: Any) -> Any:
        """Hand on, from each text, only the token that the head reads, as a batch of texts of one token."""
        output.last_hidden_state = output.last_hidden_state[0, self._kept].unsqueeze(1)
        return output


def forward_for(
    model: Any, tokenizer: TextTokenizer, spec: ModelSpec, device: str, reads: Reads, field: str, *, may_try: bool
) -> PaddedModel | PackedModel | None:
    """Return the packed way through `model` if its answers are those of each text alone, else the padded one.

    None where only a trial would tell, and there may be none now.
    """
    padded = PaddedModel(model, tokenizer, device, reads, field)
    if not spec.packing or model.config.is_encoder_decoder:
        return padded
    kind = _kind(model, device, reads)
    lays_out = spec.pinned and device == "cpu"
    if not lays_out and (is_right := _TRIED.get(kind)) is not None:
        return PackedModel(model, tokenizer, device, reads, field) if is_right else padded
    if not may_try:
        return None
    rows = _trial(model, tokenizer, reads)
    packed: PackedModel | None = None
    try:
        with torch.inference_mode():
            alone = torch.cat([padded([row]) for row in rows])
            packed = PackedModel(model, tokenizer, device, reads, field)
            _TRIED[kind] = _is_equal(alone, packed(rows))
            if _TRIED[kind]:
                if lays_out:
                    packed.lay_out()
                    if not _is_equal(alone, packed(rows)):
                        packed.take_back()
                return packed
        reason = "packed, its answers differ"
    except Exception as exc:
        # Whatever a strange architecture raises here: it has a way that works.
        reason = f"{type(exc).__name__}: {exc}"[:200]
    _TRIED[kind] = False
    if packed is not None:
        packed.undo()
    logger.info("model %s runs padded: %s", spec.key, reason)
    return padded


def _kind(model: Any, device: str, reads: Reads) -> str:
    """Return what decides whether a model can be packed: all but its weights."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return f"{type(model).__qualname__} {model.dtype} {device} {reads} {sorted(config.items(), key=lambda i: i[0])}"


def _layers(model: Any) -> nn.Module:
    """Return the module that runs the layers one after the other."""
    return next(m for m in model.modules() if any(isinstance(child, nn.ModuleList) for child in m.children()))


def _trial(model: Any, tokenizer: TextTokenizer, reads: Reads) -> list[Tokens]:
    """Return texts of several lengths, made up of ordinary tokens."""
    chance = random.Random(0)  # noqa: S311 - nothing secret
    special = set(tokenizer.tokenizer.all_special_ids)
    ordinary = [i for i in range(model.get_input_embeddings().num_embeddings) if i not in special]
    lengths = [min(length, tokenizer.limit) for length in _TRIAL_LENGTHS]
    rows = [Tokens(chance.choices(ordinary, k=length), [0] * length) for length in lengths]
    if reads == "mask":
        for row in rows:
            row.ids[len(row.ids) // 2] = tokenizer.tokenizer.mask_token_id
    return rows


def _is_equal(alone: torch.Tensor, together: torch.Tensor) -> bool:
    if alone.shape != together.shape:
        return False
    scale = max(1.0, float(alone.abs().max()))
    return float((alone - together).abs().max()) <= _TOLERANCE[alone.dtype] * scale  # False where there is a NaN
