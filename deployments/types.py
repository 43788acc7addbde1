"""The nouns both packages share: tensors, requests, results, and what a pool says of its models.

Imported everywhere; imports nothing of ours but the errors. Plain frozen dataclasses: Ray handles pickle them.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from deployments.errors import ServeError
from deployments.moderation import Moderation

Clock: TypeAlias = Callable[[], float]
MONOTONIC: Clock = time.monotonic
Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]  # by name; a BYTES tensor is an object array whose elements are `bytes`
Params: TypeAlias = Mapping[str, JsonValue]
Facts: TypeAlias = Mapping[str, str | int | bool]


class Datatype(StrEnum):
    """Tensor datatypes of the Open Inference Protocol (V2 REST, "Tensor Data Types")."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"


_NUMPY_NAMES = {"FP16": "float16", "FP32": "float32", "FP64": "float64", "BYTES": "object"}  # others are called alike
NUMPY_DTYPES: Mapping[Datatype, np.dtype[Any]] = {
    name: np.dtype(_NUMPY_NAMES.get(name, name.lower())) for name in Datatype
}
DATATYPES: Mapping[np.dtype[Any], Datatype] = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


class Task(StrEnum):
    """What a model does, by its Hugging Face task id; `tensor` is numeric tensors in and out, `custom` any Python."""

    FEATURE_EXTRACTION = "feature-extraction"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a task, not a password
    ZERO_SHOT_CLASSIFICATION = "zero-shot-classification"
    FILL_MASK = "fill-mask"
    TEXT_RANKING = "text-ranking"
    IMAGE_CLASSIFICATION = "image-classification"
    TEXT_GENERATION = "text-generation"
    TEXT2TEXT_GENERATION = "text2text-generation"
    TENSOR = "tensor"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of one input or output; -1 is a size that varies.

    An optional input may stand `instead_of` a required one: a request has one of the two.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    optional: bool = False
    instead_of: str = ""
    example: tuple[JsonValue, ...] = ()  # nested, for documentation: where not any number or text would do


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Operation(StrEnum):
    """What a request asks of its model: an answer, or the work of its tokenizer alone (`engines/vocabulary.py`)."""

    INFER = "infer"
    TOKENIZE = "tokenize"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request, free of any protocol: the same from HTTP, gRPC or a Python caller.

    `timeout_s` is the time left when the request was made or sent on; None means the model's own default.
    `outputs` names the wanted outputs; None means all. `tenant` is whose work it is, for fair turns; a higher
    `priority` goes first; `trace` is a W3C traceparent, or empty. `user` is the caller's own word for whom it asks.
    """

    model: str
    inputs: Tensors
    version: str | None = None
    params: Params = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None
    timeout_s: float | None = None
    request_id: str = ""
    tenant: str = ""
    priority: int = 0
    trace: str = ""
    user: str = ""
    operation: Operation = Operation.INFER

    @property
    def n_items(self) -> int:
        """Rows of the largest input: what batching and limits count."""
        return max([a.shape[0] if a.ndim else 1 for a in self.inputs.values()], default=0)

    @property
    def size_bytes(self) -> int:
        """Bytes of all inputs, about as many as they take on the wire."""
        return sum(sum(map(len, a.flat)) if a.dtype.hasobject else a.nbytes for a in self.inputs.values())

    def with_timeout(self, timeout_s: float) -> "InferRequest":
        """Return the same request with another time left."""
        return replace(self, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost; `n_tokens` are all of them, `n_output_tokens` those of them that were generated."""

    n_items: int = 0
    n_tokens: int = 0
    n_output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds a request spent in each phase of the pool."""

    load_s: float = 0.0
    prepare_s: float = 0.0
    queue_s: float = 0.0
    run_s: float = 0.0
    finish_s: float = 0.0


@dataclass(frozen=True, slots=True)
class InferResult:
    """The answer to one request; outputs keep the order of the model's signature."""

    model: str
    version: str
    outputs: Tensors
    usage: Usage = Usage()
    timings: Timings = Timings()
    digest: str = ""  # of the configuration that gave it
    item_tokens: tuple[int, ...] = ()  # what each item cost, where answers may be kept


# An entry a request where they share a call: an error travels as a value here only, so that one's fault is its own.
Outcome: TypeAlias = InferResult | ServeError


@dataclass(frozen=True, slots=True)
class Item:
    """One instance inside a request, ready to run: what the batch queue holds.

    `cost` is in tokens (1 where tokens mean nothing); only items of equal `group` may share a batch.
    """

    data: Any
    cost: int = 1
    group: Hashable = None


class ModelState(StrEnum):
    """Where a configured model stands in a pool. UNLOADED and PARKED models are servable: a request loads them."""

    UNLOADED = "UNLOADED"  # on disk
    PARKED = "PARKED"  # in host RAM, off the device
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What a pool says of one of its models; the ingress builds its registry from these."""

    name: str
    version: str
    task: Task
    signature: Signature
    state: ModelState
    pinned: bool
    timeout_s: float
    reason: str = ""  # why it is UNAVAILABLE, or why its newer configuration was refused
    size_bytes: int = 0
    labels: tuple[str, ...] = ()
    max_items: int = 0  # items one batch may hold; 0 is not known
    n_ready: int = 0  # replicas that have it in memory
    load_s: float = 0.0  # how long a load is going to take, from those measured; 0.0 is not known yet
    max_held: int = 0  # requests that may wait while it loads; 0 is without a limit
    digest: str = ""  # of the configuration in force
    cache_ttl_s: float | None = None  # how long an answer may be kept; None: not at all
    is_cache_shared: bool = False  # one tenant's answers serve the others too
    moderation: Moderation | None = None
    rows: tuple[str, ...] = ()  # inputs whose rows are answered independently of one another
    facts: Facts = field(default_factory=dict)  # what else a loaded model says of itself: `max_tokens`, `pooling`, …
    is_leaving: bool = False  # no longer configured: answers only until others have taken its place

    @property
    def key(self) -> str:
        """`name:version`, unique in an endpoint."""
        return model_key(self.name, self.version)

    @property
    def is_servable(self) -> bool:
        """Whether a request sent now would be answered, perhaps after a load."""
        if self.state is ModelState.LOADING:
            return not self.pinned
        return self.state is not ModelState.UNAVAILABLE


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What one pool offers, merged over its replicas."""

    models: tuple[ModelStatus, ...]
    rejected: Mapping[str, str]  # configuration entries refused, by key, with the reason
    n_replicas: int
    n_silent: int = 0  # replicas that there are as well, and that did not answer
    resident_bytes: int = 0
    budget_bytes: int = 0
    parked_bytes: int = 0
    ram_bytes: int = 0
    replicas: tuple[str, ...] = ()  # their ids
    revision: str = ""  # of `models`: equal ones mean equal models


def model_key(name: str, version: str) -> str:
    """Return `name:version`."""
    return f"{name}:{version}"


def text_array(values: list[str] | tuple[str, ...]) -> Array:
    """Return a BYTES tensor of shape (n,) from strings."""
    array = np.empty(len(values), dtype=np.object_)
    array[:] = [value.encode() for value in values]
    return array
