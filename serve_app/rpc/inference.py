"""The rpcs of the Open Inference Protocol and Triton, each a method of its name: so Serve's gRPC proxy finds them.

A base class of `Ingress`. What REST answers without inference is answered by the very same functions, their JSON turned
into the rpc's message (`answering`).
"""

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing
from functools import partial

import orjson

from deployments.errors import ModelNotFound, ModelUnavailable, ServeError
from serve_app.context import Context, recorded
from serve_app.protocols import v2_absent, v2_config, v2_metadata, v2_repository, v2_statistics
from serve_app.protocols.types import Action, RawRequest
from serve_app.protocols.v2_errors import message_of
from serve_app.rpc import inference_pb2 as pb
from serve_app.rpc.answering import answering, commanding, message, of_model
from serve_app.rpc.calls import Calls
from serve_app.rpc.settings import empty, log_settings, log_values, settings, trace_settings, trace_values
from serve_app.rpc.statuses import RpcContext
from serve_app.rpc.streams import in_order

REAL_ERRORS = "triton_grpc_error"  # metadata: errors of a stream end it with their status
_READ_AHEAD = 64  # requests of one stream worked on at the same time


class InferenceRpcs:
    """inference.GRPCInferenceService. `calls` is set by whoever inherits this."""

    calls: Calls

    ServerLive = answering("ServerLive", Action.OPEN, pb.ServerLiveResponse, v2_metadata.live)
    ServerReady = answering("ServerReady", Action.OPEN, pb.ServerReadyResponse, v2_metadata.ready)
    ServerMetadata = answering("ServerMetadata", Action.OPEN, pb.ServerMetadataResponse, v2_metadata.server)
    ModelMetadata = answering("ModelMetadata", Action.READ, pb.ModelMetadataResponse, v2_metadata.model, of_model)
    ModelConfig = answering(
        "ModelConfig",
        Action.READ,
        pb.ModelConfigResponse,
        v2_config.config,
        of_model,
        lambda config: {"config": config},
    )
    RepositoryIndex = answering(
        "RepositoryIndex",
        Action.READ,
        pb.RepositoryIndexResponse,
        v2_repository.index,
        lambda request: RawRequest(
            {"repository": request.repository_name}, body=orjson.dumps({"ready": request.ready})
        ),
        lambda lines: {"models": lines},
    )
    RepositoryModelLoad = commanding("RepositoryModelLoad", pb.RepositoryModelLoadResponse, v2_repository.load)
    RepositoryModelUnload = commanding("RepositoryModelUnload", pb.RepositoryModelUnloadResponse, v2_repository.unload)

    async def ModelReady(self, request: pb.ModelReadyRequest, grpc_context: RpcContext) -> pb.ModelReadyResponse:
        """Answer whether a request sent now would be answered; false, too, for a model that is not there."""

        async def work(context: Context) -> pb.ModelReadyResponse:
            models = self.calls.gateway.visible(context)
            try:
                status = models.resolve(request.name, request.version or None)
            except (ModelNotFound, ModelUnavailable):
                return pb.ModelReadyResponse(ready=False)
            return pb.ModelReadyResponse(ready=status.is_servable)

        return await self.calls.answer("ModelReady", Action.READ, grpc_context, pb.ModelReadyResponse(), work)

    async def ModelInfer(self, request: pb.ModelInferRequest, grpc_context: RpcContext) -> pb.ModelInferResponse:
        """Run a model."""
        work = partial(self.calls.infer, request)
        return await self.calls.answer("ModelInfer", Action.INFER, grpc_context, pb.ModelInferResponse(), work)

    async def ModelStreamInfer(
        self, request: AsyncIterable[pb.ModelInferRequest], grpc_context: RpcContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Run a model on each request of a stream, in order; errors stand in the answers.

        A request has one answer, or, from a model that generates, one for each piece of its text.
        With the metadata `triton_grpc_error: true` the first error ends the stream with its status.
        """
        is_real = (REAL_ERRORS, "true") in [(key, value) for key, value in grpc_context.invocation_metadata()]
        async with self.calls.opened("ModelStreamInfer", Action.INFER, grpc_context) as stream:
            if stream is None:
                return
            async for answer in in_order(request, partial(self._one_of_stream, stream), _READ_AHEAD):
                if isinstance(answer, pb.ModelInferResponse):
                    yield pb.ModelStreamInferResponse(infer_response=answer)
                elif is_real:
                    raise answer
                else:
                    yield pb.ModelStreamInferResponse(error_message=message_of(answer))

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, grpc_context: RpcContext
    ) -> pb.ModelStatisticsResponse:
        """Answer what the pools have counted."""

        async def work(context: Context) -> pb.ModelStatisticsResponse:
            models, gateway = self.calls.gateway.visible(context), self.calls.gateway
            reply = v2_statistics.statistics(of_model(request), models, await gateway.statistics())
            return message(pb.ModelStatisticsResponse, orjson.loads(reply.body))

        empty = pb.ModelStatisticsResponse()
        return await self.calls.answer("ModelStatistics", Action.READ, grpc_context, empty, work)

    async def _one_of_stream(
        self, stream: Context, request: pb.ModelInferRequest
    ) -> AsyncIterator[pb.ModelInferResponse | ServeError]:
        context = self.calls.context("ModelStreamInfer", Action.INFER, {})
        context.principal, context.metadata = stream.principal, stream.metadata
        try:
            with recorded(context, self.calls.gateway.record):
                async with aclosing(self.calls.stream(request, context)) as answers:
                    async for answer in answers:
                        yield answer
        except ServeError as exc:
            yield exc

    # What this server does not have: read as off, refused where it would change something.

    SystemSharedMemoryStatus = answering(
        "SystemSharedMemoryStatus", Action.READ, pb.SystemSharedMemoryStatusResponse, v2_absent.regions, shape=empty
    )
    SystemSharedMemoryRegister = answering(
        "SystemSharedMemoryRegister", Action.READ, pb.SystemSharedMemoryRegisterResponse, v2_absent.register
    )
    SystemSharedMemoryUnregister = answering(
        "SystemSharedMemoryUnregister", Action.READ, pb.SystemSharedMemoryUnregisterResponse, v2_absent.unregister
    )
    CudaSharedMemoryStatus = answering(
        "CudaSharedMemoryStatus", Action.READ, pb.CudaSharedMemoryStatusResponse, v2_absent.regions, shape=empty
    )
    CudaSharedMemoryRegister = answering(
        "CudaSharedMemoryRegister", Action.READ, pb.CudaSharedMemoryRegisterResponse, v2_absent.register
    )
    CudaSharedMemoryUnregister = answering(
        "CudaSharedMemoryUnregister", Action.READ, pb.CudaSharedMemoryUnregisterResponse, v2_absent.unregister
    )
    TraceSetting = answering(
        "TraceSetting", Action.READ, pb.TraceSettingResponse, trace_settings, settings, shape=trace_values
    )
    LogSettings = answering(
        "LogSettings", Action.READ, pb.LogSettingsResponse, log_settings, settings, shape=log_values
    )
