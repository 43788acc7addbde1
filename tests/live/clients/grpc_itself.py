"""grpcio with its own health and reflection clients: what probes, load balancers and grpcurl do."""

import struct
from typing import Any

import grpc
from checks import raises, run
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def check_health(url: str, address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for name in ("", "inference.GRPCInferenceService", "simple"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == serving
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watch).status == serving
        watch.cancel()
        with raises(grpc.RpcError, "NOT_FOUND"):
            health.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)


def check_a_client_made_from_reflection(url: str, address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
        pool = descriptor_pool.DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        assert len(service.methods) == 20
        method = service.methods_by_name["ModelInfer"]
        request = message_factory.GetMessageClass(method.input_type)()
        request.model_name = "simple"
        request.parameters["binary_data_output"].bool_param = False  # typed fields
        for name in ("INPUT0", "INPUT1"):
            tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            tensor.contents.int_contents.extend(range(16))
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer, ended = call.with_call(request, timeout=10)
        assert list(answer.outputs[0].contents.int_contents) == [2 * i for i in range(16)]
        assert "x-request-id" in dict(ended.trailing_metadata())


def published() -> descriptor_pool.DescriptorPool:
    """Return the messages of an inference, made from the numbers that the Open Inference Protocol publishes."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="published.proto", package="inference", syntax="proto3")

    def message(within: Any, called: str, /, **fields: tuple[int, Any, bool]) -> Any:
        made = within.add(name=called)
        for field, (number, what, is_repeated) in fields.items():
            label = kind.LABEL_REPEATED if is_repeated else kind.LABEL_OPTIONAL
            typed = {"type_name": what, "type": kind.TYPE_MESSAGE} if isinstance(what, str) else {"type": what}
            made.field.add(name=field, number=number, label=label, **typed)
        return made

    contents = {"int_contents": (2, kind.TYPE_INT32, True), "fp32_contents": (6, kind.TYPE_FLOAT, True)}
    message(file.message_type, "InferTensorContents", **contents)
    text, raw, size = kind.TYPE_STRING, kind.TYPE_BYTES, kind.TYPE_INT64
    tensor = {"name": (1, text, False), "datatype": (2, text, False), "shape": (3, size, True)}
    tensor["contents"] = (5, ".inference.InferTensorContents", False)
    asked = {"model_name": (1, text, False), "model_version": (2, text, False), "id": (3, text, False)}
    name = ".inference.ModelInfer{}.Infer{}Tensor"
    request = {"inputs": (5, name.format("Request", "Input"), True), "raw_input_contents": (7, raw, True)}
    message(
        message(file.message_type, "ModelInferRequest", **asked, **request).nested_type, "InferInputTensor", **tensor
    )
    answer = {"outputs": (5, name.format("Response", "Output"), True), "raw_output_contents": (6, raw, True)}
    message(
        message(file.message_type, "ModelInferResponse", **asked, **answer).nested_type, "InferOutputTensor", **tensor
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def check_a_client_made_from_published_numbers(url: str, address: str) -> None:
    pool = published()
    made = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.ModelInfer{name}"))
        for name in ("Request", "Response")
    }
    numbers = list(range(16))
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=made["Request"].SerializeToString,
            response_deserializer=made["Response"].FromString,
        )
        for is_raw in (False, True):
            request = made["Request"](model_name="simple", model_version="1", id="7")
            for name in ("INPUT0", "INPUT1"):
                tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
                if is_raw:
                    request.raw_input_contents.append(struct.pack("<16i", *numbers))
                else:
                    tensor.contents.int_contents.extend(numbers)
            answer = infer(request, timeout=10)
            assert (answer.model_name, answer.model_version, answer.id) == ("simple", "1", "7")
            assert [output.name for output in answer.outputs] == ["OUTPUT0", "OUTPUT1"]
            assert struct.unpack("<16i", answer.raw_output_contents[0]) == tuple(2 * i for i in numbers)


def check_errors_carry_their_code(url: str, address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        ready = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        try:
            ready(b"\n\x04nope", timeout=10)  # field 1, "nope"
        except grpc.RpcError as exc:
            assert exc.code() is grpc.StatusCode.NOT_FOUND
            assert dict(exc.trailing_metadata())["error-code"] == "model_not_found"
        else:
            raise AssertionError("no error")


run(globals())
