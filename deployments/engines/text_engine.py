"""What every engine over tokenised text shares. A family says which model class, which parameters, what leaves `run`.

request -> prepare: texts -> tokens -> items -> run: padded tensors -> model -> rows -> finish: named tensors
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from deployments.engines import expected_signature
from deployments.engines.loading import free_device, load_model, module_bytes
from deployments.engines.params import TextParams
from deployments.engines.tokens import Encoding, TextTokenizer, Tokens
from deployments.spec import ModelSpec
from deployments.types import Item


class TextEngine:
    """Base of the transformers text families."""

    auto_class: ClassVar[Any]
    may_lack: ClassVar[str | None] = None  # a part whose weights the family does not use

    def __init__(self, path: Path, spec: ModelSpec, device: str, max_tokens: int | None = None) -> None:
        self.signature = expected_signature(spec)
        self.labels: tuple[str, ...] = ()
        self._spec = spec
        self._device = device
        self._model = load_model(self.auto_class, path, spec, device, self.may_lack)
        self._tokenizer = TextTokenizer(path, spec, self._model, max_tokens)

    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        """Run texts together, padded on the right; return one output a text."""
        batch = self._tokenizer.pad([item.data for item in items], self._device)
        with torch.inference_mode():
            return self._rows(self._model(**batch), batch, items)

    def size_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return module_bytes(self._model)

    def warm_up(self) -> None:
        """Run once on a short text."""
        self.run(self._items(self._tokenizer.encode(["warm up"], "text", truncate=True)))

    def close(self) -> None:
        """Let go of the weights."""
        self._model = None
        free_device(self._device)

    def _rows(self, output: Any, batch: dict[str, torch.Tensor], items: Sequence[Item]) -> Sequence[Any]:
        """Turn the model's output into one output a row; by default its logits, FP32."""
        return list(output.logits.float().cpu().numpy())

    def _truncates(self, params: TextParams) -> bool:
        return params.truncate or self._spec.truncation

    def _items(self, encodings: Iterable[Encoding]) -> list[Item]:
        return [self._item(Tokens(encoding.ids, encoding.type_ids)) for encoding in encodings]

    def _item(self, tokens: Tokens) -> Item:
        return Item(tokens, len(tokens.ids), self._group(tokens))

    def _group(self, tokens: Tokens) -> int | None:
        # BART-like classifiers read the last </s> and want as many in each row of a batch.
        if not self._model.config.is_encoder_decoder:
            return None
        return tokens.ids.count(self._model.config.eos_token_id)
