"""grpc.health.v1: what Kubernetes' gRPC probes and load balancers ask. A base class of `Ingress`.

The service "" or the inference service's name means the whole endpoint; any other name is a model's.
"""

import asyncio
from collections.abc import AsyncIterator

from deployments.errors import ModelNotFound, RouteNotFound, ServeError
from serve_app.context import Context
from serve_app.protocols.types import Action, Models
from serve_app.rpc.calls import Calls
from serve_app.rpc.health_pb2 import HealthCheckRequest, HealthCheckResponse
from serve_app.rpc.statuses import RpcContext

SERVICES = ("", "inference.GRPCInferenceService", "grpc.health.v1.Health")
_POLL_S = 1.0  # how often a watcher's state is looked at: as often as the registry hears of it


class HealthRpcs:
    """grpc.health.v1.Health. `calls` is set by whoever inherits this."""

    calls: Calls

    async def Check(self, request: HealthCheckRequest, grpc_context: RpcContext) -> HealthCheckResponse:
        """Answer how a service is."""

        async def work(context: Context) -> HealthCheckResponse:
            state = _state(request.service, self.calls.gateway.visible(context))
            if state is HealthCheckResponse.SERVICE_UNKNOWN:
                raise RouteNotFound(f"unknown service: {request.service!r} is neither a service nor a model")
            return HealthCheckResponse(status=state)

        return await self.calls.answer("Check", Action.OPEN, grpc_context, HealthCheckResponse(), work)

    async def Watch(self, request: HealthCheckRequest, grpc_context: RpcContext) -> AsyncIterator[HealthCheckResponse]:
        """Answer how a service is, and again whenever that changes."""
        async with self.calls.opened("Watch", Action.OPEN, grpc_context) as context:
            last = None
            while context is not None:
                state = _state(request.service, self.calls.gateway.visible(context))
                if state != last:
                    last = state
                    yield HealthCheckResponse(status=state)
                await asyncio.sleep(_POLL_S)


def _state(service: str, models: Models) -> HealthCheckResponse.ServingStatus:
    if service in SERVICES:
        is_fine = models.readiness().is_ready
    else:
        try:
            is_fine = models.resolve(service).is_servable
        except ModelNotFound:
            return HealthCheckResponse.SERVICE_UNKNOWN
        except ServeError:
            is_fine = False
    return HealthCheckResponse.SERVING if is_fine else HealthCheckResponse.NOT_SERVING
