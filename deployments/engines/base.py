"""The contract between a pool and the object that runs weights.

An engine is synchronous and knows nothing of requests in flight, queues or Ray. A pool calls
`prepare` and `finish` in its text thread and `run` in its device thread, so `run` may overlap the other two,
but no method is ever entered twice at once.

Optional attributes: `is_packed = True` where `run` costs the sum of its items, rather than each padded to the
costliest (it may change in `settle`); `facts`, what else clients may want to know of the model (`ModelStatus.facts`);
`quick_bytes`, the size of a request up to which `prepare` and `finish` take less time than a hop between threads (some
0.1 ms): the pool then calls them on its event loop.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from deployments.errors import ModelUnavailable
from deployments.spec import ModelSpec
from deployments.types import InferRequest, Item, Signature, Tensors


class Engine(Protocol):
    """One loaded model."""

    signature: Signature
    labels: tuple[str, ...]  # class names in index order, () where the task has none

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        """Load the weights found under `path` (a folder, or one file) onto `device` ("cpu", "cuda:0")."""

    def prepare(self, request: InferRequest) -> list[Item]:
        """Turn a request into items, at least one. Names and datatypes have been checked against the signature.

        Raises:
            InvalidInput: with `field` = the tensor or parameter at fault.
            InputTooLong: a text is over the model's `max_tokens` and truncation is off.
        """

    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        """Run a batch of items of one group; return one output an item, in their order."""

    def finish(self, request: InferRequest, outputs: Sequence[Any]) -> Tensors:
        """Join the outputs of one request's items, in their order, into named tensors."""

    def size_bytes(self) -> int:
        """Bytes the weights take on the device."""

    def warm_up(self) -> None:
        """Run once on a made-up input, so that the first real request does not pay for it."""

    def close(self) -> None:
        """Let go of the weights."""


@runtime_checkable
class Parkable(Protocol):
    """An engine that can leave the device for host RAM; `size_bytes` is asked before it does.

    Optional: one without these two is unloaded, and loaded anew from disk.
    """

    def park(self) -> None:
        """Let go of the device's memory, but keep what makes `unpark` fast. Nothing else is called until then."""

    def unpark(self) -> None:
        """Be as before `park`."""


@runtime_checkable
class Unsettled(Protocol):
    """Optional: an engine that can find out how it runs best, and should not while its first answer is waited for."""

    is_settled: bool

    def settle(self) -> None:
        """Find it out. Called in the device thread, between two batches, a moment after the first."""


@runtime_checkable
class Tokenizing(Protocol):
    """An engine whose tokenizer can be asked alone; optional. Called where `prepare` is."""

    def tokenize(self, request: InferRequest) -> Tensors:
        """Answer `Operation.TOKENIZE`. Raises InvalidInput."""

    def decode(self, request: InferRequest) -> Tensors:
        """Answer `Operation.DECODE`. Raises InvalidInput."""


def unavailable(spec: ModelSpec, reason: str) -> ModelUnavailable:
    """Return the error for a model that cannot be loaded; `reason` says what is wrong and what to do."""
    return ModelUnavailable(f"model {spec.key!r} cannot be loaded: {reason}", reason=reason)
