"""What every engine over tokenised text shares. A family says which model class, which parameters, what leaves `run`.

request -> prepare: texts -> tokens -> items -> run: packed tensors -> model -> outputs -> finish: named tensors
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from deployments.engines import expected_signature
from deployments.engines.base import unavailable
from deployments.engines.cutting import Side
from deployments.engines.loading import free_device, load_shared, module_bytes
from deployments.engines.packed import PackedModel, forward_for
from deployments.engines.padded import PaddedModel, Reads
from deployments.engines.params import TextParams
from deployments.engines.tokens import Encoding, TextTokenizer, Tokens
from deployments.engines.vocabulary import Vocabulary
from deployments.spec import ModelSpec
from deployments.types import Facts, Item


class TextEngine(Vocabulary):
    """Base of the transformers text families."""

    auto_class: ClassVar[Any]
    may_lack: ClassVar[str | None] = None  # a part whose weights the family does not use
    reads: ClassVar[Reads] = "text"
    field: ClassVar[str] = "logits"  # of the model's output
    quick_bytes: ClassVar[int] = 512  # a few short texts; 2,000 texts of it are tokenised in a second

    def __init__(self, path: Path, spec: ModelSpec, device: str, max_tokens: int | None = None) -> None:
        self.signature = expected_signature(spec)
        self.labels: tuple[str, ...] = ()
        self._spec = spec
        self._device = device
        self._model, self._parking = load_shared(self.auto_class, path, spec, device, self.may_lack)
        self._tokenizer = TextTokenizer(path, spec, self._model, max_tokens)
        # BART-like classifiers read the last </s> and want as many in each row of a batch.
        config = self._model.config
        self._grouped_by: int | None = config.eos_token_id if config.is_encoder_decoder else None
        if self.reads == "mask" and self._tokenizer.tokenizer.mask_token_id is None:
            raise unavailable(spec, f"its tokenizer has no mask token; the model was not made for {spec.task.value}")
        way = self._way(may_try=spec.pinned)  # one that is loaded on demand has its first answer to give before
        self.is_settled = way is not None
        self._forward: PaddedModel | PackedModel = way or PaddedModel(
            self._model, self._tokenizer, device, self.reads, self.field
        )
        self.is_packed = self._forward.is_packed
        self.facts: Facts = {
            "max_tokens": self._tokenizer.limit,
            "truncation": spec.truncation,
            "dtype": str(self._model.dtype).removeprefix("torch."),
        }

    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        """Run texts together; return one output a text."""
        with torch.inference_mode():
            return self._outputs(self._forward([item.data for item in items]).float(), items)

    def settle(self) -> None:
        """Find out how batches run best from now on."""
        if self.is_settled:
            return
        self._parking.learn()
        if (way := self._way(may_try=True)) is not None:
            self._forward, self.is_packed, self.is_settled = way, way.is_packed, True

    def size_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return module_bytes(self._model)

    def warm_up(self) -> None:
        """Run once on a short text."""
        self.run(self._items(self._tokenizer.encode(["warm up"], "text", truncate="right")))

    def park(self) -> None:
        """Take the weights off the device."""
        if isinstance(self._forward, PackedModel):
            self._forward.take_back()
        self._parking.park()
        free_device(self._device)

    def unpark(self) -> None:
        """Bring the weights back."""
        self._parking.unpark()

    def close(self) -> None:
        """Let go of the weights."""
        if isinstance(self._forward, PackedModel):
            self._forward.undo()  # its hook in the model is a cycle, which would keep both until the next collection
        self._parking.drop()
        del self._parking
        self._model = None
        del self._forward
        free_device(self._device)

    def _way(self, *, may_try: bool) -> PaddedModel | PackedModel | None:
        parts = (self._model, self._tokenizer, self._spec, self._device, self.reads, self.field)
        return forward_for(*parts, may_try=may_try)

    def _outputs(self, values: torch.Tensor, items: Sequence[Item]) -> Sequence[Any]:
        """Turn what the family reads, FP32, into one output a text; by default its row."""
        return list(values.cpu().numpy())

    def _truncates(self, params: TextParams) -> Side | None:
        """Return the side on which texts are cut that are too long; None where they are refused."""
        if not (params.truncate or self._spec.truncation):
            return None
        return params.truncation_side or self._tokenizer.side

    def _items(self, encodings: Iterable[Encoding]) -> list[Item]:
        return [self._item(Tokens(encoding.ids, encoding.type_ids)) for encoding in encodings]

    def _item(self, tokens: Tokens) -> Item:
        group = None if self._grouped_by is None else tokens.ids.count(self._grouped_by)
        return Item(tokens, len(tokens.ids), group)
