"""Every Ray Serve handle of the ingress: to pools, to their catalogs, to its own siblings.

Handles are made lazily (a pool may be deployed after the endpoint), kept (each configured handle starts a router),
and every failure of theirs becomes one of our errors. Called by `ingress.py` only.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from deployments.broadcast import ask_all
from deployments.chunks import Chunk
from deployments.errors import Overloaded, PoolUnavailable, ReplicaLost, ServeError
from deployments.hop import pack_requests, unpack_outcomes
from deployments.metrics import ReplicaMetrics
from deployments.orders import Order
from deployments.revisions import complete
from deployments.statistics import ModelStatistics
from deployments.types import InferRequest, PoolStatus
from serve_app.lanes import Call, Outcomes, Target

_MAX_HANDLES = 4096  # of model-specific handles kept; the oldest goes first
_CONTROL_TIMEOUT_S = 2.0


class PoolHandles:
    """Calls into pool applications."""

    def __init__(self) -> None:
        self._pools: dict[str, DeploymentHandle] = {}
        self._catalogs: dict[str, DeploymentHandle] = {}
        self._models: dict[tuple[str, str, str], Any] = {}
        self._told: dict[str, PoolStatus] = {}  # by pools when last asked

    async def send(self, call: Call) -> Outcomes:
        """Send one coalesced call to a pool replica; the forwarder's `Send`.

        Raises:
            ReplicaLost: the replica died with the call on board.
            PoolUnavailable: no replica can be reached.
        """
        # A stream costs a quarter more than a single answer; one request has no other whose answer it could wait for.
        is_alone = len(call.requests) == 1
        method = self._method(call.target.pool, call.target.key, "infer_one" if is_alone else "infer_many")
        packed = pack_requests(call.requests, call.timeouts_s)
        response = method.remote(
            call.target.key, packed, backlog=call.backlog, sender=call.sender, number=call.number, copy=call.copy
        )
        has_ended = False
        try:
            with _from_replica(call.target.pool, "a call"):
                if is_alone:
                    yield list(enumerate(unpack_outcomes(await response)))
                else:
                    async for indices, outcomes in response:
                        yield list(zip(indices, unpack_outcomes(outcomes), strict=True))
            has_ended = True
        finally:
            if not has_ended:
                response.cancel()

    async def tell_left(self, pool: str, sender: str, calls: Mapping[int, Sequence[int]]) -> None:
        """Tell a pool which requests of this sender's calls nobody waits for; the forwarder's `Tell`."""
        async with asyncio.timeout(_CONTROL_TIMEOUT_S):
            await self._pool(pool).broadcast("forget", sender, dict(calls)).results_async(return_exceptions=True)

    async def stream(self, target: Target, request: InferRequest, copy: int) -> AsyncGenerator[Sequence[Chunk], None]:
        """Yield one streamed answer of a pool replica; the `Open` of `streams.py`.

        Raises:
            ReplicaLost: the replica died with the stream.
            PoolUnavailable: no replica can be reached.
        """
        method = self._method(target.pool, target.key, "stream")
        # NOTE: an empty context, or all streams of one gRPC call would bear one id of Serve's and be one request to its
        # router: of two that ask while it knows no replica yet, one would wait for ever.
        response = Context().run(method.remote, target.key, request, copy=copy)
        try:
            with _from_replica(target.pool, "a stream"):
                async for ready in response:
                    yield ready
        finally:
            response.cancel()

    async def status(self, pool: str) -> PoolStatus:
        """Ask a pool's catalog what it offers. Raises PoolUnavailable."""
        last = self._told.get(pool)
        told: PoolStatus = await self._ask_catalog(pool, "status", last.revision if last else "")
        self._told[pool] = status = complete(told, last)
        return status

    async def discover(self, pool: str) -> None:
        """Have a pool look again for versions in the folders of its models. Raises PoolUnavailable."""
        await self._ask_catalog(pool, "discover")

    async def order(self, pool: str, order: Order, keys: Sequence[str]) -> None:
        """Have models loaded or unloaded, and wait until they are; the caller sets the deadline.

        Raises:
            ServeError: a model cannot be loaded, or the pool cannot be reached.
        """
        try:
            await self._catalog(pool).order.remote(order, list(keys))
        except Exception as exc:
            raise _translate(exc, pool) from exc

    async def warm(self, target: Target, n_copies: int) -> None:
        """Have a model in memory on its first replicas, without any order that it stay there. Raises ServeError."""
        try:
            await self._catalog(target.pool).warm.remote(target.key, n_copies)
        except Exception as exc:
            raise _translate(exc, target.pool) from exc

    async def metrics(self, pool: str) -> list[tuple[str, ReplicaMetrics]]:
        """Return the metrics of a pool's replicas, none if it does not answer."""
        try:
            replicas: list[ReplicaMetrics] = await self._ask_catalog(pool, "metrics")
        except ServeError:
            return []
        return [(pool, replica) for replica in replicas]

    async def statistics(self, pool: str) -> Mapping[str, ModelStatistics]:
        """Return what a pool's replicas have counted, nothing if it does not answer."""
        try:
            counted: Mapping[str, ModelStatistics] = await self._ask_catalog(pool, "statistics")
        except ServeError:
            return {}
        return counted

    async def _ask_catalog(self, pool: str, method: str, *args: Any) -> Any:
        try:
            async with asyncio.timeout(_CONTROL_TIMEOUT_S):
                return await getattr(self._catalog(pool), method).remote(*args)
        except TimeoutError:
            raise PoolUnavailable(f"pool {pool!r} did not answer within {_CONTROL_TIMEOUT_S:g} s") from None
        except Exception as exc:
            raise _translate(exc, pool) from exc

    def _catalog(self, pool: str) -> DeploymentHandle:
        if pool not in self._catalogs:
            self._catalogs[pool] = serve.get_deployment_handle("Catalog", app_name=pool, _check_exists=False)
        return self._catalogs[pool]

    def _pool(self, pool: str) -> DeploymentHandle:
        if pool not in self._pools:
            self._pools[pool] = serve.get_deployment_handle("Pool", app_name=pool, _check_exists=False)
        return self._pools[pool]

    def _method(self, pool: str, key: str, name: str) -> Any:
        method = self._models.get((pool, key, name))
        if method is None:
            while len(self._models) >= _MAX_HANDLES:
                self._models.pop(next(iter(self._models)))
            method = self._pool(pool).options(
                method_name=name,
                stream=name != "infer_one",
                multiplexed_model_id=key,
                request_serialization="pickle",
                response_serialization="pickle",
            )
            self._models[pool, key, name] = method
        return method


def listening_host() -> str:
    """Return the address that Serve's proxies listen on; blocks for a moment."""
    client = _get_global_client()
    return str(client.http_config.host or "0.0.0.0")  # noqa: S104 - what it means, not a wish


async def sibling_metrics() -> list[tuple[str, ReplicaMetrics]]:
    """Return the metrics of all replicas of the ingress that answer in time, the asking one included."""
    context = serve.get_replica_context()
    handle = serve.get_deployment_handle(context.deployment, app_name=context.app_name, _check_exists=False)
    try:
        answers = await ask_all(handle, "replica_metrics", timeout_s=1.0)
    except (TimeoutError, DeploymentUnavailableError):
        return []
    return [(context.app_name, answer) for answer in answers.given if isinstance(answer, ReplicaMetrics)]


@contextmanager
def _from_replica(pool: str, what: str) -> Iterator[None]:
    """Raise as ours what a replica's answer raises; Ray cancels it, and not us, when the replica gives up."""
    try:
        yield
    except ServeError:
        raise
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        raise ReplicaLost(f"a replica of pool {pool!r} gave up {what}") from None
    except Exception as exc:
        raise _translate(exc, pool) from exc


def _translate(exc: Exception, pool: str) -> ServeError:
    """Return our error for one of Ray's."""
    cause = exc.cause if isinstance(exc, RayTaskError) else exc
    if isinstance(cause, ServeError):
        return cause
    if isinstance(cause, RayActorError | RequestCancelledError):
        return ReplicaLost(f"a replica of pool {pool!r} was lost", retry_after_s=1.0)
    if isinstance(cause, BackPressureError):
        return Overloaded(f"the queue of pool {pool!r} is full", retry_after_s=1.0)
    if isinstance(cause, DeploymentUnavailableError):
        return PoolUnavailable(f"pool {pool!r} is not deployed", retry_after_s=1.0)
    if isinstance(cause, RayServeException):
        return PoolUnavailable(f"pool {pool!r} cannot be reached: {type(cause).__name__}", retry_after_s=1.0)
    return ServeError(f"pool {pool!r} failed: {type(cause).__name__}")
