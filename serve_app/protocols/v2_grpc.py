"""Open Inference Protocol V2 over gRPC: protobuf messages to requests and answers, with the checks of REST.

Called by `serve_app.rpc.calls`. Answers are raw, as Triton's: that is what its clients look for. `binary_data: false`
of every output, or `binary_data_output: false` of the request, asks for typed fields, which people can read; an answer
with an output that has none (FP16) is raw all the same, since the protocol does not mix the two.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
from pydantic import JsonValue

from deployments.errors import InvalidInput
from deployments.tensors import check_inputs, datatype_of
from deployments.types import NUMPY_DTYPES, Array, Datatype, InferRequest, InferResult, ModelStatus
from serve_app.protocols.types import Models
from serve_app.protocols.v2_binary import BF16, from_bytes, to_bytes
from serve_app.protocols.v2_outputs import Outputs, read_outputs
from serve_app.protocols.v2_parameters import read_parameters
from serve_app.protocols.v2_tensors import check_shape
from serve_app.rpc.inference_pb2 import InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse

Render: TypeAlias = Callable[[InferResult], ModelInferResponse]
Input: TypeAlias = ModelInferRequest.InferInputTensor
FINAL = "triton_final_response"

_FIELDS: dict[Datatype, str] = {
    Datatype.BOOL: "bool_contents",
    **dict.fromkeys((Datatype.INT8, Datatype.INT16, Datatype.INT32), "int_contents"),
    Datatype.INT64: "int64_contents",
    **dict.fromkeys((Datatype.UINT8, Datatype.UINT16, Datatype.UINT32), "uint_contents"),
    Datatype.UINT64: "uint64_contents",
    Datatype.FP32: "fp32_contents",
    Datatype.FP64: "fp64_contents",
    Datatype.BYTES: "bytes_contents",
}


def parse_infer(
    message: ModelInferRequest, models: Models, request_id: str, *, is_stream: bool = False
) -> tuple[InferRequest, Render]:
    """Read a `ModelInferRequest`.

    Raises:
        InvalidInput: `field` is the tensor or parameter at fault.
        ModelNotFound: there is no such model or version.
    """
    name, version = message.model_name, message.model_version or None
    status = models.resolve(name, version)
    parameters = read_parameters(_values(message.parameters), is_stream=is_stream)
    inputs = _inputs(message, status)
    check_inputs(inputs, status.signature, status.name)
    asked = [(output.name, _values(output.parameters)) for output in message.outputs]
    outputs = read_outputs(asked, status, all_binary=parameters.binary_outputs is not False)
    request = InferRequest(name, inputs, version, parameters.params, outputs.names, parameters.timeout_s, request_id)
    return request, partial(_render, message.id, outputs, parameters.final_response)


def _inputs(message: ModelInferRequest, status: ModelStatus) -> dict[str, Array]:
    raw = message.raw_input_contents
    if raw:
        _check_no_contents(message.inputs, status)
    if raw and len(raw) != len(message.inputs):
        raise InvalidInput(
            f"the number of inputs ({len(message.inputs)}) does not match the expected number of raw input contents "
            f"({len(raw)}) for model {status.name!r}.",
            field="raw_input_contents",
        )
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(message.inputs):
        field = f"inputs[{index}]"
        if tensor.name in inputs:
            raise InvalidInput(f"input {tensor.name!r} already exists in request", field=f"{field}.name")
        if tensor.datatype not in (*Datatype, BF16):
            known = ", ".join((*Datatype, BF16))
            raise InvalidInput(f"{field}.datatype: {tensor.datatype!r} is not one of {known}", field=field)
        if not raw:
            inputs[tensor.name] = _typed(tensor, field)
            continue
        inputs[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, memoryview(raw[index]), field)
    return inputs


def _check_no_contents(tensors: Iterable[Input], status: ModelStatus) -> None:
    for index, tensor in enumerate(tensors):
        if tensor.HasField("contents"):
            raise InvalidInput(
                f"contents field must not be specified when using raw_input_contents for {tensor.name!r} "
                f"for model {status.name!r}",
                field=f"inputs[{index}]",
            )


def _typed(tensor: Input, field: str) -> Array:
    shape = tuple(tensor.shape)
    check_shape(tensor.name, shape, field)
    wanted = _FIELDS.get(tensor.datatype)  # type: ignore[call-overload]  # a StrEnum: its values are its keys
    if wanted is None:
        raise InvalidInput(
            f"{tensor.datatype} has no typed contents: send input {tensor.name!r} in raw_input_contents", field=field
        )
    others = [found.name for found, _ in tensor.contents.ListFields() if found.name != wanted]
    if others:
        raise InvalidInput(
            f"input {tensor.name!r}: {tensor.datatype} belongs in contents.{wanted}, not in {others[0]}", field=field
        )
    elements = getattr(tensor.contents, wanted)
    if len(elements) != math.prod(shape):
        raise InvalidInput(
            f"input {tensor.name!r}: shape {list(shape)} means {math.prod(shape)} elements, contents.{wanted} holds "
            f"{len(elements)}",
            field=field,
        )
    try:
        array = np.array(list(elements), NUMPY_DTYPES[Datatype(tensor.datatype)])  # of a list: that checks the range
    except OverflowError:
        raise InvalidInput(
            f"input {tensor.name!r}: an element is out of range for {tensor.datatype}", field=field
        ) from None
    return array.reshape(shape)


def _render(message_id: str, outputs: Outputs, final: bool, result: InferResult) -> ModelInferResponse:
    answer = ModelInferResponse(model_name=result.model, model_version=result.version, id=message_id)
    if final:
        answer.parameters[FINAL].bool_param = True
    selected = list(outputs.select(result))
    is_raw = any(output.is_binary or datatype_of(array) not in _FIELDS for output, array in selected)
    for output, array in selected:
        datatype = datatype_of(array)
        tensor = answer.outputs.add(name=output.name, datatype=datatype, shape=array.shape)
        if is_raw:
            answer.raw_output_contents.append(to_bytes(array))
        else:
            tensor.contents.CopyFrom(InferTensorContents(**{_FIELDS[datatype]: array.reshape(-1).tolist()}))
    return answer


def _values(parameters: Mapping[str, InferParameter]) -> dict[str, JsonValue]:
    values: dict[str, JsonValue] = {}
    for key, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        values[key] = getattr(parameter, kind) if kind else None
    return values
