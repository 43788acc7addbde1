"""The rpcs of inference.GRPCInferenceService: the checks and words of REST, in protobuf and statuses."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from edge_fakes import MAX_BODY_BYTES, FakeGateway
from rpc_fakes import Rpc, Service

from deployments import errors
from deployments.errors import (
    DeadlineExceeded,
    ModelUnavailable,
    Overloaded,
    PermissionDenied,
    ServeError,
    Unauthenticated,
)
from deployments.orders import LOAD, UNLOAD
from deployments.statistics import Statistics
from deployments.types import NUMPY_DTYPES, Datatype, InferRequest, InferResult
from serve_app.context import Context
from serve_app.protocols.v2_binary import to_bytes
from serve_app.rpc import health_pb2
from serve_app.rpc import inference_pb2 as pb
from serve_app.rpc.health import HealthRpcs
from serve_app.rpc.inference import InferenceRpcs
from serve_app.rpc.statuses import STATUSES


def text(model: str = "minilm", **fields: Any) -> pb.ModelInferRequest:
    contents = pb.InferTensorContents(bytes_contents=[b"a", b"b"])
    tensor = pb.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[2], contents=contents)
    return pb.ModelInferRequest(model_name=model, **{"inputs": [tensor], **fields})


def tensor(name: str = "x", datatype: str = "FP32", shape: Iterable[int] = (1, 2), **contents: Any) -> Any:
    made = pb.InferTensorContents(**contents) if contents else None
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, contents=made)


def request(*tensors: Any, model: str = "echo", **fields: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name=model, inputs=tensors, **fields)


def test_every_rpc_of_both_services_has_its_method() -> None:
    services = (
        (pb.DESCRIPTOR.services_by_name["GRPCInferenceService"], InferenceRpcs),
        (health_pb2.DESCRIPTOR.services_by_name["Health"], HealthRpcs),
    )
    for service, methods in services:
        for rpc in service.methods:
            # Serve passes the context by this name, and only to methods that have it.
            assert list(inspect.signature(getattr(methods, rpc.name)).parameters)[1:] == ["request", "grpc_context"]


def test_every_error_has_a_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServeError)]
    assert {kind.status for kind in kinds} <= set(STATUSES)


TYPED = {"binary_data_output": pb.InferParameter(bool_param=False)}
WANTED = pb.ModelInferRequest.InferRequestedOutputTensor


async def test_what_is_sent_typed_is_answered_raw_as_triton_does(service: Service, rpc: Rpc) -> None:
    answer = await service.ModelInfer(text(), rpc)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [1, 0, 0, 3, 2, 0, 0, 3]
    assert not answer.outputs[0].HasField("contents")


async def test_typed_fields_come_when_every_output_asks_for_them(service: Service, rpc: Rpc) -> None:
    def named(**binary: bool) -> list[Any]:
        values = {name: {"binary_data": pb.InferParameter(bool_param=value)} for name, value in binary.items()}
        return [WANTED(name=name, parameters=parameters) for name, parameters in values.items()]

    async def is_raw(**fields: Any) -> bool:
        answer = await service.ModelInfer(text(model="mood", **fields), rpc)
        assert rpc.code is None, rpc.details
        assert bool(answer.raw_output_contents) != any(output.HasField("contents") for output in answer.outputs)
        return bool(answer.raw_output_contents)

    assert not await is_raw(parameters=TYPED)
    assert not await is_raw(outputs=named(label=False, score=False))
    assert await is_raw(outputs=named(label=False, score=True))
    assert await is_raw(outputs=named(label=True), parameters=TYPED)


async def test_an_answer_says_whose_it_is_and_is_recorded(service: Service, rpc: Rpc, gateway: FakeGateway) -> None:
    answer = await service.ModelInfer(text(id="7", parameters=TYPED), rpc)
    assert (rpc.code, answer.id, answer.model_name, answer.model_version) == (None, "7", "minilm", "1")
    [output] = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("embedding", "FP32", [2, 4])
    assert list(output.contents.fp32_contents) == [1, 0, 0, 3, 2, 0, 0, 3]
    assert not answer.raw_output_contents
    assert gateway.rpcs == [("ModelInfer", "ok")]
    assert gateway.recorded[0].code == "ok"
    assert rpc.trailing["x-request-id"] == gateway.requests[0].request_id


FIELDS = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-1, 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [1.5, float("inf")]),
    "FP64": ("fp64_contents", [1e300, -0.0]),
    "BYTES": ("bytes_contents", [b"a\x00b", "ü".encode()]),
}


@pytest.mark.parametrize("datatype", FIELDS)
async def test_every_typed_datatype_goes_both_ways(service: Service, rpc: Rpc, datatype: str) -> None:
    field, values = FIELDS[datatype]
    sent = request(tensor(datatype=datatype, shape=[2], **{field: values}), parameters=TYPED)
    answer = await service.ModelInfer(sent, rpc)
    assert rpc.code is None, rpc.details
    assert answer.outputs[0].datatype == datatype
    assert list(getattr(answer.outputs[0].contents, field)) == values


@pytest.mark.parametrize("datatype", list(Datatype))
async def test_every_datatype_goes_both_ways_raw(service: Service, rpc: Rpc, datatype: Datatype) -> None:
    array = np.array([b"a", b""], dtype=np.object_) if datatype is Datatype.BYTES else np.array([0, 1])
    raw = to_bytes(array.astype(NUMPY_DTYPES[datatype]))
    answer = await service.ModelInfer(request(tensor(datatype=datatype, shape=[2]), raw_input_contents=[raw]), rpc)
    assert rpc.code is None, rpc.details
    assert list(answer.raw_output_contents) == [raw]
    assert not answer.outputs[0].HasField("contents")


async def test_an_output_without_typed_field_makes_the_answer_raw(
    service: Service, rpc: Rpc, gateway: FakeGateway
) -> None:
    gateway.outputs = {"h": np.ones(1, np.float16), "s": np.ones(1, np.float32)}
    answer = await service.ModelInfer(request(tensor(shape=[1], fp32_contents=[1]), parameters=TYPED), rpc)
    assert [len(raw) for raw in answer.raw_output_contents] == [2, 4]


BAD = [
    (request(tensor(shape=[2], fp32_contents=[1])), "shape [2] means 2 elements, contents.fp32_contents holds 1"),
    (request(tensor(shape=[-1], fp32_contents=[1])), "negative size"),
    (request(tensor(datatype="STRING", shape=[1])), "'STRING' is not one of BOOL"),
    (request(tensor(datatype="FP16", shape=[1])), "FP16 has no typed contents"),
    (request(tensor(datatype="BF16", shape=[1])), "BF16 has no typed contents"),
    (request(tensor(datatype="INT8", shape=[1], int_contents=[300])), "out of range for INT8"),
    (request(tensor(datatype="INT64", shape=[1], int_contents=[3])), "belongs in contents.int64_contents"),
    (request(tensor(), tensor(), raw_input_contents=[b"1" * 8] * 2), "input 'x' already exists in request"),
    (request(tensor(), raw_input_contents=[b"", b""]), "the number of inputs (1) does not match the expected number"),
    (
        request(tensor(fp32_contents=[1, 2]), raw_input_contents=[b"1" * 8]),
        "contents field must not be specified when using raw_input_contents for 'x' for model 'echo'",
    ),
    (request(tensor(), tensor("y", fp32_contents=[1, 2]), raw_input_contents=[b""]), "raw_input_contents for 'y' for"),
    (request(tensor(), raw_input_contents=[b"1" * 7]), "shape [1, 2] needs 8 bytes, got 7 bytes"),
    (request(), "give at least one tensor"),
    (text(parameters={"triton_x": pb.InferParameter(bool_param=True)}), "are reserved for Triton usage"),
    (text(parameters={"timeout": pb.InferParameter(string_param="1")}), "parameters.timeout"),
    (text(parameters={"a": pb.InferParameter()}), "parameters.a: must be a string"),
    (
        text(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="nope")]),
        "unexpected inference output 'nope' for model 'minilm'",
    ),
]


@pytest.mark.parametrize(("message", "words"), BAD)
async def test_bad_requests_are_invalid_argument(
    service: Service, rpc: Rpc, message: pb.ModelInferRequest, words: str
) -> None:
    await service.ModelInfer(message, rpc)
    assert rpc.code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in rpc.details
    assert rpc.trailing["error-code"] == "invalid_input"


async def test_errors_are_statuses_with_code_and_wait(service: Service, rpc: Rpc, gateway: FakeGateway) -> None:
    gateway.error = Overloaded("full", retry_after_s=1.2)
    await service.ModelInfer(text(), rpc)
    assert (rpc.code, rpc.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    assert {"error-code": "overloaded", "retry-after": "2"}.items() <= rpc.trailing.items()
    assert gateway.rpcs == [("ModelInfer", "overloaded")]


async def test_unknown_models_are_not_found_with_the_words_tritons_clients_look_for(service: Service, rpc: Rpc) -> None:
    await service.ModelInfer(text("nope"), rpc)
    assert rpc.code is grpc.StatusCode.NOT_FOUND
    assert "unknown model" in rpc.details


async def test_what_was_not_foreseen_is_internal_and_says_nothing(
    service: Service, rpc: Rpc, gateway: FakeGateway
) -> None:
    gateway.error = RuntimeError("secret")
    await service.ModelInfer(text(), rpc)
    assert rpc.code is grpc.StatusCode.INTERNAL
    assert "secret" not in rpc.details


async def test_who_may_not_come_in_is_told_so(service: Service, rpc: Rpc, gateway: FakeGateway) -> None:
    gateway.refusal = Unauthenticated("who are you")
    await service.ModelInfer(text(), rpc)
    assert (rpc.code, gateway.requests) == (grpc.StatusCode.UNAUTHENTICATED, [])
    live = await service.ServerLive(pb.ServerLiveRequest(), Rpc())
    assert live.live


async def test_a_strange_machine_may_ask_for_health_alone(gateway: FakeGateway, rpc: Rpc) -> None:
    service = Service(gateway, admits=False)
    probe = Rpc()
    await service.Check(health_pb2.HealthCheckRequest(), probe)
    await service.ModelInfer(text(), rpc)
    assert (probe.code, rpc.code) == (None, grpc.StatusCode.UNAUTHENTICATED)
    assert gateway.requests == []


async def test_a_message_over_the_limit_is_refused(service: Service, rpc: Rpc) -> None:
    await service.ModelInfer(text(raw_input_contents=[bytes(MAX_BODY_BYTES)]), rpc)
    assert rpc.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "exceeds the maximum" in rpc.details


async def test_a_client_that_leaves_is_recorded_as_gone(rpc: Rpc, gateway: FakeGateway) -> None:
    async def never(request: InferRequest, context: Context) -> InferResult:
        await asyncio.sleep(1000)
        raise AssertionError

    gateway.infer = never  # type: ignore[method-assign]
    call = asyncio.ensure_future(Service(gateway).ModelInfer(text(), rpc))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert gateway.rpcs == [("ModelInfer", "cancelled")]


async def test_metadata_and_readiness(service: Service, gateway: FakeGateway) -> None:
    server = await service.ServerMetadata(pb.ServerMetadataRequest(), Rpc())
    assert server.name == "model-endpoint"
    assert "statistics" in server.extensions
    model = await service.ModelMetadata(pb.ModelMetadataRequest(name="mood", version="1"), Rpc())
    assert (list(model.versions), model.inputs[0].name, list(model.inputs[0].shape)) == (["1", "2"], "text", [-1])
    for name, is_ready in (("mood", True), ("broken", False), ("nope", False)):
        answer = await service.ModelReady(pb.ModelReadyRequest(name=name), Rpc())
        assert answer.ready is is_ready
    gateway.models.waiting = {"minilm:1": "LOADING"}
    assert not (await service.ServerReady(pb.ServerReadyRequest(), Rpc())).ready


async def test_configuration_statistics_and_index(service: Service, gateway: FakeGateway) -> None:
    counted = Statistics(lambda: 1.5)
    counted.batch("adder:1", 3, 0.25)
    gateway.counted = counted.models
    config = (await service.ModelConfig(pb.ModelConfigRequest(name="adder"), Rpc())).config
    assert (config.max_batch_size, config.input[0].data_type, list(config.input[0].dims)) == (1, pb.TYPE_FP32, [2])
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    [line] = (await service.ModelStatistics(pb.ModelStatisticsRequest(name="adder"), Rpc())).model_stats
    assert (line.inference_count, line.execution_count, line.batch_stats[0].compute_infer.ns) == (3, 1, 250_000_000)
    every = (await service.ModelStatistics(pb.ModelStatisticsRequest(), Rpc())).model_stats
    assert len(every) == len(gateway.models.all())
    index = (await service.RepositoryIndex(pb.RepositoryIndexRequest(), Rpc())).models
    named = Rpc()
    assert not (await service.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="other"), named)).models
    assert named.code is grpc.StatusCode.UNIMPLEMENTED
    assert ("broken", "UNAVAILABLE") in [(model.name, model.state) for model in index]


async def test_models_are_loaded_and_unloaded_by_tritons_and_by_kserves_field(
    service: Service, gateway: FakeGateway
) -> None:
    await service.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="minilm"), Rpc())
    await service.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(repository_name="minilm"), Rpc())
    assert [(c.order, c.models[0].name) for c in gateway.commands] == [(LOAD, "minilm"), (UNLOAD, "minilm")]
    refused = Rpc()
    parameters = {"config": pb.ModelRepositoryParameter(string_param='{"platform": "onnx"}')}
    await service.RepositoryModelLoad(
        pb.RepositoryModelLoadRequest(model_name="minilm", parameters=parameters), refused
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_whoever_loads_a_model_leaves_a_line_refused_or_not(
    service: Service, gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app.audit")
    load = pb.RepositoryModelLoadRequest(model_name="minilm")
    await service.RepositoryModelLoad(load, Rpc({"x-request-id": "r-1"}))
    gateway.refusal = PermissionDenied("may not")
    await service.RepositoryModelLoad(load, Rpc({"x-request-id": "r-2"}))
    lines = [orjson.loads(record.getMessage().removeprefix("audit ")) for record in caplog.records]
    assert [(line["act"], line["path"], line["request_id"], line["code"]) for line in lines] == [
        ("RepositoryModelLoad", {"model": "minilm"}, "r-1", "ok"),
        ("RepositoryModelLoad", {"model": "minilm"}, "r-2", "permission_denied"),
    ]
    assert all({"principal", "credential", "status"} <= line.keys() for line in lines)


async def test_what_is_not_here_is_read_as_off_and_cannot_be_changed(service: Service) -> None:
    trace = await service.TraceSetting(pb.TraceSettingRequest(), Rpc())
    assert list(trace.settings["trace_level"].value) == ["OFF"]
    logs = await service.LogSettings(pb.LogSettingsRequest(), Rpc())
    assert (logs.settings["log_info"].bool_param, logs.settings["log_verbose_level"].uint32_param) == (True, 0)
    regions = await service.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(), Rpc())
    assert not regions.regions
    ok = Rpc()
    await service.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(), ok)
    assert ok.code is None
    value = pb.TraceSettingRequest.SettingValue(value=["TIMESTAMPS"])
    for change, message in (
        (service.TraceSetting, pb.TraceSettingRequest(settings={"trace_level": value})),
        (service.SystemSharedMemoryRegister, pb.SystemSharedMemoryRegisterRequest(name="r")),
    ):
        refused = Rpc()
        await change(message, refused)
        assert refused.code is grpc.StatusCode.UNIMPLEMENTED


async def stream(*messages: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    for message in messages:
        yield message


async def test_a_stream_answers_each_in_order_and_goes_on_after_an_error(service: Service, rpc: Rpc) -> None:
    messages = stream(text(id="1"), text("nope", id="2"), text(id="3"))
    answers = [answer async for answer in service.ModelStreamInfer(messages, rpc)]
    assert [answer.infer_response.id for answer in answers] == ["1", "", "3"]
    assert "unknown model" in answers[1].error_message
    assert rpc.code is None


async def test_a_stream_that_wants_real_errors_ends_with_the_first(service: Service) -> None:
    rpc = Rpc({"triton_grpc_error": "true"})
    messages = stream(text(id="1"), text("nope"), text(id="3"))
    answers = [answer async for answer in service.ModelStreamInfer(messages, rpc)]
    assert [answer.infer_response.id for answer in answers] == ["1"]
    assert rpc.code is grpc.StatusCode.NOT_FOUND


async def test_the_final_answer_of_a_stream_says_so_where_that_is_wanted(service: Service, rpc: Rpc) -> None:
    wish = {"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)}
    [answer] = [a async for a in service.ModelStreamInfer(stream(text(parameters=wish)), rpc)]
    assert answer.infer_response.parameters["triton_final_response"].bool_param


async def test_health_is_that_of_the_endpoint_or_of_a_model(service: Service, gateway: FakeGateway) -> None:
    async def check(name: str) -> tuple[int, grpc.StatusCode | None]:
        rpc = Rpc()
        answer = await service.Check(health_pb2.HealthCheckRequest(service=name), rpc)
        return answer.status, rpc.code

    assert await check("") == (health_pb2.HealthCheckResponse.SERVING, None)
    assert await check("inference.GRPCInferenceService") == (health_pb2.HealthCheckResponse.SERVING, None)
    assert await check("minilm") == (health_pb2.HealthCheckResponse.SERVING, None)
    assert await check("broken") == (health_pb2.HealthCheckResponse.NOT_SERVING, None)
    assert (await check("nope"))[1] is grpc.StatusCode.NOT_FOUND
    gateway.models.waiting = {"minilm:1": "LOADING"}
    assert await check("") == (health_pb2.HealthCheckResponse.NOT_SERVING, None)


async def test_a_watcher_hears_of_changes_only(
    service: Service, gateway: FakeGateway, rpc: Rpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.rpc.health._POLL_S", 0.001)
    watch = service.Watch(health_pb2.HealthCheckRequest(), rpc)
    assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
    asyncio.get_running_loop().call_later(0.02, gateway.models.waiting.update, {"minilm:1": "LOADING"})
    assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await watch.aclose()


async def test_a_model_that_cannot_serve_is_unavailable(service: Service, rpc: Rpc, gateway: FakeGateway) -> None:
    gateway.error = ModelUnavailable("no file")
    await service.ModelInfer(text(), rpc)
    assert rpc.code is grpc.StatusCode.UNAVAILABLE


async def test_a_generating_model_streams_its_text_in_pieces(service: Service, rpc: Rpc, gateway: FakeGateway) -> None:
    one = pb.ModelInferRequest.InferInputTensor(
        name="text", datatype="BYTES", shape=[1], contents=pb.InferTensorContents(bytes_contents=[b"hi"])
    )
    wish = {"triton_enable_empty_final_response": pb.InferParameter(bool_param=True), **TYPED}
    asked = pb.ModelInferRequest(model_name="smollm2", id="7", inputs=[one], parameters=wish)
    answers = [answer.infer_response async for answer in service.ModelStreamInfer(stream(asked), rpc)]
    texts = [answer.outputs[0].contents.bytes_contents[0] for answer in answers]
    assert texts == [b"Hello", b", wor", b"ld!"]
    assert [answer.parameters["triton_final_response"].bool_param for answer in answers] == [False, False, True]
    assert {answer.id for answer in answers} == {"7"}
    reason = next(output for output in answers[-1].outputs if output.name == "finish_reason")
    assert reason.contents.bytes_contents[0] == b"stop"
    whole = await service.ModelInfer(pb.ModelInferRequest(model_name="smollm2", inputs=[one], parameters=TYPED), rpc)
    assert whole.outputs[0].contents.bytes_contents[0] == b"Hello, world!"
    gateway.breaks_off = DeadlineExceeded("too slow")
    late = [answer async for answer in service.ModelStreamInfer(stream(asked), rpc)]
    assert late[0].infer_response.outputs
    assert "too slow" in late[-1].error_message
