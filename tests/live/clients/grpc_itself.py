"""grpcio with its own health and reflection clients: what probes, load balancers and grpcurl do."""

import grpc
from checks import raises, run
from google.protobuf import descriptor_pool, message_factory
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
