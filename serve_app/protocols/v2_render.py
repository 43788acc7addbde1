"""A V2 answer over REST: JSON, or JSON and the binary outputs behind it. Called by `v2`."""

from deployments.errors import InvalidInput
from deployments.tensors import datatype_of
from deployments.types import Array, Datatype, InferResult
from serve_app.protocols.json_body import dump
from serve_app.protocols.types import Reply
from serve_app.protocols.v2_binary import to_bytes
from serve_app.protocols.v2_outputs import Outputs
from serve_app.protocols.v2_tensors import to_json

HEADER = "inference-header-content-length"
_OCTETS = "application/octet-stream"


def render(request_id: str | None, outputs: Outputs, result: InferResult) -> Reply:
    """Return the answer; octets only where a binary output has at least one."""
    body: dict[str, object] = {"model_name": result.model, "model_version": result.version}
    if request_id is not None:
        body["id"] = request_id
    tensors: list[dict[str, object]] = []
    tails: list[bytes] = []
    for output, array in outputs.select(result):
        if output.is_binary:
            tails.append(to_bytes(array))
            tensors.append(_described(output.name, array, {"binary_data_size": len(tails[-1])}))
        else:
            tensors.append(_in_json(output.name, array))
    body["outputs"] = tensors
    head = dump(body)
    if not any(tails):
        return Reply(head)
    return Reply(b"".join((head, *tails)), media_type=_OCTETS, headers={HEADER: str(len(head))})


def _in_json(name: str, array: Array) -> dict[str, object]:
    datatype, data, content_type = to_json(array)
    if datatype is Datatype.FP16:
        raise InvalidInput(
            f"sending FP16 data via JSON is not supported. Please use the binary data format for output {name}",
            field="outputs",
        )
    parameters: dict[str, object] = {"content_type": content_type} if content_type else {}
    return {**_described(name, array, parameters), "data": data}


def _described(name: str, array: Array, parameters: dict[str, object]) -> dict[str, object]:
    tensor: dict[str, object] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
    return {**tensor, "parameters": parameters} if parameters else tensor
