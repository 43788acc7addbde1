"""Triton's model_configuration extension: what a client wants to know before it sends batches.

Called through its rows; `v2_grpc` writes the same figures as protobuf. A model whose tensors all begin with a size that
varies and have more dimensions behind it takes rows, so `max_batch_size` is that of its batches and `dims` leave the
first size out, as in Triton; any other model has `max_batch_size` 0 and `dims` that are whole shapes.
"""

from functools import partial

from pydantic import BaseModel

from deployments.types import Datatype, ModelStatus, TensorSpec
from serve_app.protocols.json_body import dump
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Reply
from serve_app.protocols.v2_errors import MODEL, V2, VERSION

PLATFORM = "pytorch"


class ConfigTensor(BaseModel):
    """One tensor; `dims` without the batch where there is one."""

    name: str
    data_type: str
    dims: list[int]
    optional: bool = False


class DynamicBatching(BaseModel):
    """How requests are put together: whenever the device is free, never by a delay."""

    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int


class TransactionPolicy(BaseModel):
    """Whether one request may get several answers."""

    decoupled: bool


class ResponseCache(BaseModel):
    """Whether answers are kept by Triton's rules: they are not."""

    enable: bool


class ModelConfig(BaseModel):
    """A model as Triton's clients read it."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    dynamic_batching: DynamicBatching
    model_transaction_policy: TransactionPolicy
    response_cache: ResponseCache


def config(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v2/models/{model}[/versions/{version}]/config`."""
    return Reply(dump(config_of(models.resolve(raw.path["model"], raw.path.get("version")))))


def config_of(model: ModelStatus) -> dict[str, object]:
    """Return the configuration of a model as JSON members."""
    inputs, outputs = model.signature.inputs, model.signature.outputs
    has_rows = bool(inputs) and all(len(spec.shape) > 1 and spec.shape[0] == -1 for spec in (*inputs, *outputs))
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": max(model.max_items, 1) if has_rows else 0,
        "input": [_tensor(spec, has_rows) for spec in inputs],
        "output": [_tensor(spec, has_rows) for spec in outputs],
        "dynamic_batching": {
            "preferred_batch_size": [model.max_items] if model.max_items else [],
            "max_queue_delay_microseconds": 0,
        },
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }


def data_type(datatype: Datatype) -> str:
    """Return Triton's name for a datatype in a configuration."""
    return "TYPE_STRING" if datatype is Datatype.BYTES else f"TYPE_{datatype}"


_config = partial(Endpoint, action=Action.READ, dialect=V2, answer=config, response=ModelConfig)
ROWS = (
    _config("GET", f"{MODEL}/config", summary="Configuration of a model"),
    _config("GET", f"{VERSION}/config", summary="Configuration of one version of a model"),
)


def _tensor(spec: TensorSpec, has_rows: bool) -> dict[str, object]:
    dims = spec.shape[1:] if has_rows else spec.shape
    return {"name": spec.name, "data_type": data_type(spec.datatype), "dims": dims, "optional": spec.optional}
