"""Open Inference Protocol V2 over REST: what KServe, Triton and MLServer clients speak.

Called through the rows in `ENDPOINTS`. A body is JSON; with the header `Inference-Header-Content-Length: n` its first n
bytes are, and binary tensors follow in the order of the inputs (Triton's binary_tensor_data); n = 0 is a raw-binary
request, whose body is the model's one input. JSON cannot carry FP16, BF16, NaN or infinities; bytes carry all but
outputs in BF16.
"""

from functools import partial

from deployments.errors import InvalidInput
from deployments.tensors import check_inputs
from deployments.types import Array, Datatype, InferRequest, ModelStatus
from serve_app.protocols.json_body import parse_body
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render
from serve_app.protocols.v2_binary import BF16, from_bytes
from serve_app.protocols.v2_errors import MODEL, V2, VERSION
from serve_app.protocols.v2_outputs import SHARED_MEMORY, Outputs, read_outputs
from serve_app.protocols.v2_parameters import read_parameters
from serve_app.protocols.v2_raw import read_raw
from serve_app.protocols.v2_render import HEADER, render
from serve_app.protocols.v2_schema import InferBody, InferResponse, InputTensor, PredictBody
from serve_app.protocols.v2_tensors import from_base64, to_array

_HALF = frozenset((Datatype.FP16, BF16))


def parse_infer(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /v2/models/{model}[/versions/{version}]/infer`."""
    name, version = raw.path["model"], raw.path.get("version")
    json, binary = _split(raw)
    if not json and HEADER in raw.headers:
        return _raw_binary(raw, models.resolve(name, version), name, version)
    return _request(raw, models, parse_body(json, InferBody), binary, (name, version))


def parse_predict(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /v2/predict`, whose body names the model."""
    json, binary = _split(raw)
    body = parse_body(json, PredictBody)
    return _request(raw, models, body, binary, (body.model, body.version))


_infer = partial(Endpoint, action=Action.INFER, dialect=V2, response=InferResponse)
ROWS = (
    _infer("POST", f"{MODEL}/infer", summary="Run a model on tensors", parse=parse_infer, request=InferBody),
    _infer("POST", f"{VERSION}/infer", summary="Run one version of a model", parse=parse_infer, request=InferBody),
    _infer(
        "POST",
        "/v2/predict",
        summary="Run the model named in the body on tensors",
        parse=parse_predict,
        request=PredictBody,
    ),
)


def _split(raw: RawRequest) -> tuple[bytes, memoryview | None]:
    """Return the JSON part and the bytes after it, None where the header does not say that there are any."""
    given = raw.headers.get(HEADER)
    if given is None:
        return raw.body, None
    size = int(given) if given.isdecimal() and len(given) < 20 else -1
    if size < 0:
        raise InvalidInput(f"Unable to parse Inference-Header-Content-Length, got: {given[:40]}", field=HEADER)
    if size > len(raw.body):
        raise InvalidInput(f"inference header size should be in range (0, {len(raw.body)}), got: {size}", field=HEADER)
    return raw.body[:size], memoryview(raw.body)[size:]


def _request(
    raw: RawRequest, models: Models, body: InferBody, binary: memoryview | None, named: tuple[str, str | None]
) -> tuple[InferRequest, Render]:
    name, version = named
    status = models.resolve(name, version)
    parameters = read_parameters(body.parameters or {})
    inputs = _inputs(body, binary, status)
    check_inputs(inputs, status.signature, status.name)
    asked = [(output.name, output.parameters or {}) for output in body.outputs or []]
    outputs = read_outputs(asked, status, all_binary=bool(parameters.binary_outputs))
    request = InferRequest(
        name, inputs, version, parameters.params, outputs.names, parameters.timeout_s, raw.request_id
    )
    return request, partial(render, body.id, outputs)


def _inputs(body: InferBody, binary: memoryview | None, status: ModelStatus) -> dict[str, Array]:
    inputs: dict[str, Array] = {}
    rest = binary
    for index, tensor in enumerate(body.inputs):
        field = f"inputs[{index}]"
        if tensor.name in inputs:
            raise InvalidInput(f"input {tensor.name!r} already exists in request", field=f"{field}.name")
        size = _binary_size(tensor, field)
        if size is None:
            inputs[tensor.name] = _from_json(tensor, field)
            continue
        if rest is None:
            raise InvalidInput(
                "must specify valid 'Inference-Header-Content-Length' in request header and 'binary_data_size' when "
                "passing inputs in binary data format",
                field=HEADER,
            )
        if size > len(rest):
            raise InvalidInput(
                f"unexpected size for input {tensor.name!r}, expecting {size - len(rest)} additional bytes "
                f"for model {status.name!r}",
                field=f"{field}.parameters",
            )
        inputs[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, rest[:size], field)
        rest = rest[size:]
    if rest:
        raise InvalidInput(
            f"unexpected additional input data for model {status.name!r}: {len(rest)} bytes after the last tensor",
            field="body",
        )
    return inputs


def _binary_size(tensor: InputTensor, field: str) -> int | None:
    """Return how many bytes of the body are this input's, None if its data is JSON."""
    parameters = tensor.parameters or {}
    sources = ("binary_data_size", "shared_memory_region")
    given = [repr(name) for name in sources if name in parameters]
    if tensor.data is not None:
        given.insert(0, "'data'")
    if len(given) != 1:
        found = f"But set {' '.join(given)}" if given else "But no field is set"
        raise InvalidInput(
            f"input {tensor.name!r}: Input must set only one of the following fields: 'data', 'binary_data_size' in "
            f"'parameters', 'shared_memory_region' in 'parameters'. {found}",
            field=f"{field}.data",
        )
    if "shared_memory_region" in parameters:
        raise InvalidInput(SHARED_MEMORY, field=f"{field}.parameters")
    if "binary_data_size" not in parameters:
        return None
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise InvalidInput(
            f"{field}.parameters.binary_data_size: must be a whole number of bytes", field=f"{field}.parameters"
        )
    return size


def _from_json(tensor: InputTensor, field: str) -> Array:
    if tensor.datatype in _HALF:
        raise InvalidInput(
            f"receiving {tensor.datatype} data via JSON is not supported. "
            f"Please use the binary data format for input {tensor.name}, or send FP32",
            field=f"{field}.datatype",
        )
    datatype = Datatype(tensor.datatype)
    array = to_array(tensor.name, datatype, tuple(tensor.shape), tensor.data, f"{field}.data")
    if datatype is Datatype.BYTES and (tensor.parameters or {}).get("content_type") == "base64":
        return from_base64(tensor.name, array, f"{field}.data")
    return array


def _raw_binary(raw: RawRequest, status: ModelStatus, name: str, version: str | None) -> tuple[InferRequest, Render]:
    inputs = read_raw(raw.body, status)
    outputs = Outputs((), all_binary=True, labels=status.labels)
    request = InferRequest(name, inputs, version, request_id=raw.request_id)
    return request, partial(render, None, outputs)
