"""Texts of a batch run as one sequence without padding: attention stays inside each text, positions start anew.

`forward_for` gives `TextEngine` this or, where an architecture would answer otherwise, `PaddedModel`: it tries both on
a few made-up texts, so no list of architectures has to be kept.
"""

import logging
import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import nn

from deployments.engines import laid_out, packed_attention, products
from deployments.engines.flat_layers import flat_layers
from deployments.engines.padded import PaddedModel, Reads
from deployments.engines.tokens import TextTokenizer, Tokens, first_position
from deployments.spec import ModelSpec

logger = logging.getLogger(__name__)

_TRIAL_LENGTHS = (9, 2, 24, 9, 6, 50)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest answer, or of 1


class Way(StrEnum):
    """How batches of a model run."""

    FLAT = "packed, its layers flat"
    PACKED = "packed"
    PADDED = "padded"


# By kind of model: what answered right. A trial costs half of a load, and one speaks for every model of a kind, and for
# the same model's next load.
_TRIED: dict[str, Way] = {}


class PackedModel:
    """A model behind packed batches; it changes the model's attention, and layers, until `undo` is called."""

    is_packed = True

    def __init__(
        self, model: Any, tokenizer: TextTokenizer, device: str, reads: Reads, field: str, *, flat: bool = True
    ) -> None:
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
        self._flat = list(flat_layers(self._layers)) if flat else []
        for layer in self._flat:
            layer.install()
        self._quick = products.quicken(model) if device == "cpu" else []
        self._hook = None if reads == "tokens" else self._layers.register_forward_hook(self._narrow)

    def __call__(self, rows: Sequence[Tokens]) -> torch.Tensor:
        """Return (texts, x), or (all tokens, x) in the order of the rows where the family reads tokens."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        lengths = [len(rows[i].ids) for i in order]
        n_filler = products.even(sum(lengths)) - sum(lengths) if self._device == "cpu" else 0
        batch = self._tokenizer.pack([rows[i] for i in order], self._first_position, self._device, n_filler)
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

    @property
    def is_flat(self) -> bool:
        """Whether the layers, or some of them, run as `flat_layers` has them."""
        return bool(self._flat)

    def lay_out(self) -> None:
        """Have the layers' weights laid out for this CPU: faster, but no longer shared with other processes."""
        laid_out.lay_out(self._layers, [layer.projections for layer in self._flat])

    def take_back(self) -> None:
        """Have the weights in the plain layers again."""
        laid_out.undo(self._layers)

    def undo(self) -> None:
        """Leave the model as it was."""
        self.take_back()
        for layer in self._flat:
            layer.undo()
        for dense in self._quick:
            dense.undo()
        self._flat, self._quick = [], []
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
    pack = partial(PackedModel, model, tokenizer, device, reads, field)
    if not spec.packing or model.config.is_encoder_decoder:
        return padded
    kind = _kind(model, device, reads)
    lays_out = spec.pinned and device == "cpu"
    if not lays_out and (way := _TRIED.get(kind)) is not None:
        return padded if way is Way.PADDED else pack(flat=way is Way.FLAT)
    if not may_try:
        return None
    with torch.inference_mode():
        return _tried(kind, padded, pack, _trial(model, tokenizer, reads), lays_out=lays_out)


def _tried(
    kind: str, padded: PaddedModel, pack: Callable[..., PackedModel], rows: Sequence[Tokens], *, lays_out: bool
) -> PaddedModel | PackedModel:
    """Return the quickest way whose answers are those of each text alone, and remember it."""
    for way in (Way.FLAT, Way.PACKED):
        packed: PackedModel | None = None
        try:
            alone = torch.cat([padded([row]) for row in rows])
            packed = pack(flat=way is Way.FLAT)
            is_flat, is_right, reason = packed.is_flat, _is_equal(alone, packed(rows)), "its answers differ"
            if is_right and lays_out:
                packed.lay_out()
                if not _is_equal(alone, packed(rows)):
                    packed.take_back()
        except Exception as exc:
            # Whatever a strange architecture raises here: it has a way that works.
            is_right, reason = False, f"{type(exc).__name__}: {exc}"[:200]
            is_flat = packed is not None and packed.is_flat
        if is_right and packed is not None:
            _TRIED[kind] = way
            return packed
        logger.info("a model does not run %s: %s", way, reason)
        if packed is not None:
            packed.undo()
        if not is_flat:
            break  # the other way would be the same
    _TRIED[kind] = Way.PADDED
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
