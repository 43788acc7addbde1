"""A custom engine for tests: echoes numbers, and misbehaves on command. Also an example of the contract."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deployments.errors import InvalidInput
from deployments.spec import ModelSpec
from deployments.types import Datatype, InferRequest, Item, Signature, Tensors, TensorSpec

POISON = -1.0


class Echo:
    """Takes `x` FP32 [n], gives `y` = x, FP32 [n]; raises on POISON; takes `delay_s` a batch.

    `is_whole` makes one item of a request, however long.
    """

    signature = Signature((TensorSpec("x", Datatype.FP32, (-1,)),), (TensorSpec("y", Datatype.FP32, (-1,)),))
    labels: tuple[str, ...] = ()
    quick_bytes = 1024

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        device: str,
        *,
        delay_s: float = 0.0,
        n_bytes: int = 10,
        fails: str = "",
        is_whole: bool = False,
    ) -> None:
        if fails:
            raise RuntimeError(fails)
        self._delay_s = delay_s
        self._n_bytes = n_bytes
        self._is_whole = is_whole
        self.batches: list[int] = []

    def prepare(self, request: InferRequest) -> list[Item]:
        if request.params.get("refuse"):
            raise InvalidInput("x: refused on command", field="x")
        if self._is_whole:
            return [Item(request.inputs["x"])]
        return [Item(float(value)) for value in request.inputs["x"]]

    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        time.sleep(self._delay_s)
        self.batches.append(len(items))
        if any(np.any(item.data == POISON) for item in items):
            raise ValueError("poison")
        return [item.data for item in items]

    def finish(self, request: InferRequest, outputs: Sequence[Any]) -> Tensors:
        return {"y": np.array(outputs, dtype=np.float32).reshape(-1)}

    def size_bytes(self) -> int:
        return self._n_bytes

    def warm_up(self) -> None:
        self.run([Item(0.0)])

    def close(self) -> None:
        """Nothing to let go of."""
