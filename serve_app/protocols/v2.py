"""Open Inference Protocol V2 over REST, JSON bodies: what KServe, Triton and MLServer clients speak.

Called through the rows in `ENDPOINTS`. Of the reserved parameters, `timeout` (µs) lowers the deadline; `priority`,
`binary_data_output` and `binary_data` are accepted and change nothing; those of sequences, headers, shared memory and
binary tensors are refused rather than ignored, because the answer would be wrong without them.
"""

from functools import partial

from pydantic import JsonValue

from deployments.errors import InvalidInput
from deployments.tensors import check_inputs, check_output_names
from deployments.types import Array, Datatype, InferRequest, InferResult, ModelStatus
from serve_app.protocols.json_body import dump, parse_body
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render, Reply
from serve_app.protocols.v2_errors import MODEL, V2, VERSION
from serve_app.protocols.v2_schema import InferBody, InferResponse, InputTensor, PredictBody, RequestedOutput
from serve_app.protocols.v2_tensors import from_base64, to_array, to_json

_IGNORED = frozenset(("priority", "binary_data_output"))
_REFUSED = frozenset(("sequence_id", "sequence_start", "sequence_end", "headers"))
_UINT64 = 2**64


def parse_infer(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /v2/models/{model}[/versions/{version}]/infer`."""
    _refuse_binary(raw)
    return _request(raw, models, parse_body(raw.body, InferBody), raw.path["model"], raw.path.get("version"))


def parse_predict(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /v2/predict`, whose body names the model."""
    _refuse_binary(raw)
    body = parse_body(raw.body, PredictBody)
    return _request(raw, models, body, body.model, body.version)


_infer = partial(Endpoint, action=Action.INFER, dialect=V2, response=InferResponse)
ROWS = (
    _infer("POST", f"{MODEL}/infer", summary="Run a model on tensors", parse=parse_infer, request=InferBody),
    _infer(
        "POST",
        f"{VERSION}/infer",
        summary="Run one version of a model on tensors",
        parse=parse_infer,
        request=InferBody,
    ),
    _infer(
        "POST",
        "/v2/predict",
        summary="Run the model named in the body on tensors",
        parse=parse_predict,
        request=PredictBody,
    ),
)


def _request(
    raw: RawRequest, models: Models, body: InferBody, name: str, version: str | None
) -> tuple[InferRequest, Render]:
    status = models.resolve(name, version)
    timeout_s, params = _parameters(body.parameters or {})
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(body.inputs):
        if tensor.name in inputs:
            raise InvalidInput(f"input {tensor.name!r} already exists in request", field=f"inputs[{index}].name")
        inputs[tensor.name] = _array(tensor, f"inputs[{index}]")
    check_inputs(inputs, status.signature, status.name)
    wanted = _wanted(body.outputs or [], status)
    request = InferRequest(name, inputs, version, params, wanted, timeout_s, raw.request_id)
    return request, partial(_render, body.id, wanted)


def _refuse_binary(raw: RawRequest) -> None:
    header = "inference-header-content-length"
    if header in raw.headers:
        raise InvalidInput(f"{header}: binary tensors are not served; send the tensors as JSON", field=header)


def _array(tensor: InputTensor, field: str) -> Array:
    parameters = tensor.parameters or {}
    for key in ("binary_data_size", "shared_memory_region"):
        if key in parameters:
            raise InvalidInput(
                f"input {tensor.name!r}: {key!r} is not served; give the tensor in 'data'", field=f"{field}.parameters"
            )
    if tensor.datatype is Datatype.FP16:
        raise InvalidInput(
            "receiving FP16 data via JSON is not supported. "
            f"Please use the binary data format for input {tensor.name}, or send FP32",
            field=f"{field}.datatype",
        )
    if tensor.data is None:
        raise InvalidInput(
            f"input {tensor.name!r} must set the field 'data'. But no field is set", field=f"{field}.data"
        )
    array = to_array(tensor.name, tensor.datatype, tuple(tensor.shape), tensor.data, f"{field}.data")
    if tensor.datatype is Datatype.BYTES and parameters.get("content_type") == "base64":
        return from_base64(tensor.name, array, f"{field}.data")
    return array


def _parameters(given: dict[str, JsonValue]) -> tuple[float | None, dict[str, JsonValue]]:
    params: dict[str, JsonValue] = {}
    timeout_s = None
    for key, value in given.items():
        field = f"parameters.{key}"
        if key.startswith("triton_"):
            raise InvalidInput(
                f"{field}: parameter keys starting with 'triton_' are reserved for Triton usage "
                "and should not be specified.",
                field=field,
            )
        if key in _REFUSED:
            raise InvalidInput(f"{field}: is not served; leave it out", field=field)
        if not isinstance(value, str | int | float):
            raise InvalidInput(f"{field}: must be a string, a number or a boolean", field=field)
        if key == "timeout":
            timeout_s = _timeout_s(value, field)
        elif key not in _IGNORED:
            params[key] = value
    return timeout_s, params


def _timeout_s(value: JsonValue, field: str) -> float | None:
    if type(value) is not int or not 0 <= value < _UINT64:
        raise InvalidInput(f"{field}: must be a whole number of microseconds, 0 or more", field=field)
    return value / 1e6 if value else None  # 0 is Triton's "no timeout of its own"


def _wanted(outputs: list[RequestedOutput], status: ModelStatus) -> tuple[str, ...] | None:
    names: list[str] = []
    for index, output in enumerate(outputs):
        field = f"outputs[{index}]"
        if output.name in names:
            raise InvalidInput(f"output {output.name!r} already exists in request", field=f"{field}.name")
        for key in ("classification", "shared_memory_region"):
            if key in (output.parameters or {}):
                raise InvalidInput(f"{field}.parameters.{key}: is not served", field=f"{field}.parameters")
        names.append(output.name)
    check_output_names(tuple(names), status.signature, status.name)
    return tuple(names) or None


def _render(request_id: str | None, wanted: tuple[str, ...] | None, result: InferResult) -> Reply:
    body: dict[str, object] = {"model_name": result.model, "model_version": result.version}
    if request_id is not None:
        body["id"] = request_id
    body["outputs"] = [_output(name, result) for name in wanted or result.outputs]
    return Reply(dump(body))


def _output(name: str, result: InferResult) -> dict[str, object]:
    if name not in result.outputs:  # a model whose signature was not known when the request was read
        gives = ", ".join(result.outputs)
        raise InvalidInput(
            f"unexpected inference output {name!r} for model {result.model!r}; it gives {gives}", field="outputs"
        )
    array = result.outputs[name]
    datatype, data, content_type = to_json(array)
    if datatype is Datatype.FP16:
        raise InvalidInput(
            f"sending FP16 data via JSON is not supported. Please use the binary data format for output {name}",
            field="outputs",
        )
    tensor: dict[str, object] = {"name": name, "datatype": datatype, "shape": array.shape}
    if content_type:
        tensor["parameters"] = {"content_type": content_type}
    return {**tensor, "data": data}
