"""The `Ingress` deployment: composition of the endpoint inside one replica, and its doors for HTTP, gRPC and Python."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from ray import serve
from starlette.applications import Starlette

from deployments.chunks import Chunk
from deployments.errors import ServeError
from deployments.garbage import collect_seldom
from deployments.gcs_store import GcsValue
from deployments.logs import log_through_serve
from deployments.metrics import ReplicaMetrics
from deployments.spec import explain
from deployments.types import InferRequest, InferResult, ModelStatus
from serve_app.addresses import is_loopback
from serve_app.audit import audit
from serve_app.auth import Authenticator
from serve_app.awake import AwakeClock
from serve_app.breaker import Breakers
from serve_app.bulkhead import Bulkheads
from serve_app.cache import ResponseCache
from serve_app.config import EndpointArgs, EndpointConfig
from serve_app.context import Context, Door, recorded
from serve_app.fallback import FallbackChain
from serve_app.forwarder import Forwarder
from serve_app.gateway import Gateway
from serve_app.handles import PoolHandles, listening_host
from serve_app.http import build_asgi
from serve_app.lanes import Target
from serve_app.limits import Limits
from serve_app.middleware import ACCESS
from serve_app.policies import Policies
from serve_app.pools import PoolControl
from serve_app.principals import CLUSTER
from serve_app.redis_counters import open_redis
from serve_app.registry import Registry
from serve_app.request_log import RequestLog
from serve_app.retry import Retry
from serve_app.routing import Routes
from serve_app.rpc.calls import Calls
from serve_app.rpc.health import HealthRpcs
from serve_app.rpc.inference import InferenceRpcs
from serve_app.shadow import Shadows
from serve_app.standing import Record
from serve_app.streams import Streams
from serve_app.telemetry import IngressMetrics

logger = logging.getLogger(__name__)
_MAX_WARMING = 4  # models loaded at a time for names that are about to move: what requests load goes between
_FIRST_WORD_S = 2.5  # how long a replica that starts waits for the pools' first answers, before it takes requests


@serve.ingress()
class Ingress(InferenceRpcs, HealthRpcs):
    """Answers HTTP through `build_asgi`, gRPC by methods named as its rpcs, Python callers by `infer` and `stream`."""

    def __init__(self, args: EndpointArgs) -> None:
        log_through_serve()
        collect_seldom()
        self._args = args
        self._handles = PoolHandles()
        self._registry = Registry()
        self._pools = PoolControl(self._registry, self._handles)
        self._metrics = IngressMetrics()
        self._forwarder = Forwarder(
            self._handles.send,
            observe=self._metrics.call,
            tell=self._handles.tell_left,
            has_silent=self._registry.has_silent,
        )
        self._shadows = Shadows(self._registry, self._ask, self._metrics.traffic)
        self._auth = Authenticator()
        self._limits = Limits(self._metrics, open_redis)
        self._log = RequestLog(self._metrics)
        fallback, retry = FallbackChain(self._registry, self._metrics.traffic), Retry(self._metrics.traffic)
        breakers = Breakers(self._metrics.traffic)
        self._awake = AwakeClock()
        bulkheads = Bulkheads(self._metrics.traffic, awake=self._awake)
        policies = Policies(  # each policy is made here; their shapes: policies.py
            identity=self._auth,
            router=Routes(self._registry),
            limiter=self._limits,
            layers=(fallback, ResponseCache(self._metrics.traffic), bulkheads, retry, breakers),
            openings=(fallback, retry, breakers),
            room=bulkheads,
            breaks=breakers,
            observers=(self._shadows,),
            log=self._log,
        )
        streams = Streams(self._handles.stream)
        self._gateway = Gateway(self._registry, self._forwarder, self._metrics, self._pools, policies, streams=streams)
        self.calls = Calls(self._gateway, args.max_body_bytes, self._auth.admits)
        self._knows_host = False
        self._refused: dict[str, str] = {}
        self._record = Record(self._registry, GcsValue(f"names/{serve.get_replica_context().app_name}"))
        self._refreshing: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._warming: dict[str, asyncio.Task[None]] = {}  # by model key: names are about to move to these
        self._warm_room = asyncio.Semaphore(_MAX_WARMING)

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_asgi(self._gateway, self._args.max_body_bytes)

    async def reconfigure(self, user_config: Any) -> None:
        """Apply the deployment's user_config. Never raises: a wrong one is listed, and the one before stays."""
        try:
            config = EndpointConfig.model_validate(user_config)
        except ValueError as exc:
            logger.error("endpoint configuration refused: %s", explain(exc))
            self._refused = {"endpoint/user_config": explain(exc)}
            self._registry.refuse(self._refused)
            return
        self._gateway.configure(config)
        audit("configuration")
        is_first = self._refreshing is None
        if is_first:
            self._awake.start()
            await self._record.recall()
        ACCESS.disabled = not config.access_log
        self._refused = {}
        self._registry.server_name = config.server_name
        self._registry.configure(config.pools, self._problems(), config.aliases)
        await self._learn_host()
        if is_first:
            loop = asyncio.get_running_loop()
            heard = asyncio.Event()
            self._refreshing = loop.create_task(self._refresh_forever(heard), context=contextvars.Context())
            with suppress(TimeoutError):  # a pool that is only now being deployed does not answer yet
                async with asyncio.timeout(_FIRST_WORD_S):
                    await heard.wait()

    async def infer(self, request: InferRequest) -> InferResult:
        """Answer a Python caller who holds a handle (`serve_app.client.connect`)."""
        context = Context(request.request_id, Door.PYTHON, "infer", "infer", principal=CLUSTER)
        with recorded(context, self._gateway.record):
            return await self._gateway.infer(request, context)

    async def stream(self, request: InferRequest) -> AsyncGenerator[Sequence[Chunk], None]:
        """Answer a Python caller piece by piece."""
        context = Context(request.request_id, Door.PYTHON, "stream", "stream", principal=CLUSTER)
        with recorded(context, self._gateway.record):
            async with aclosing(self._gateway.stream(request, context)) as chunks:
                async for ready in chunks:
                    yield ready

    async def replica_metrics(self) -> ReplicaMetrics:
        """Return this replica's metrics; the replica that serves /metrics asks all of them."""
        return ReplicaMetrics(serve.get_replica_context().replica_tag, self._metrics.collect())

    async def check_health(self) -> None:
        """Raise if the pools are no longer asked what they offer; Serve then replaces this replica."""
        if self._refreshing is not None and self._refreshing.done():
            raise RuntimeError("the ingress stopped asking its pools")

    async def __del__(self) -> None:
        for task in (self._refreshing, self._keeping, *self._warming.values()):
            if task is not None:
                task.cancel()
        self._awake.stop()
        await self._shadows.aclose()
        await asyncio.to_thread(self._log.close)

    def _problems(self) -> dict[str, str]:
        return self._auth.problems | self._limits.problems

    async def _learn_host(self) -> None:
        """Find out, once, whether other machines reach this endpoint; until it is known, they are taken to."""
        if self._knows_host:
            return
        try:
            host = await asyncio.to_thread(listening_host)
        except Exception as exc:
            logger.warning("the address that Serve listens on cannot be found out yet: %s", type(exc).__name__)
            return
        self._auth.exposed_host = "" if is_loopback(host) else host
        self._knows_host = True

    async def _refresh_forever(self, heard: asyncio.Event) -> None:
        while True:
            await asyncio.gather(*(self._pools.refresh(pool) for pool in self._registry.pools))
            heard.set()
            if self._keeping is None or self._keeping.done():
                self._keeping = asyncio.create_task(self._record.keep())
            for target, n_copies in self._registry.moving():
                if target.key not in self._warming:
                    task = asyncio.create_task(self._warm(target, n_copies))
                    self._warming[target.key] = task
            await self._learn_host()
            self._auth.refresh()
            self._registry.refuse(self._refused | self._problems())
            await asyncio.sleep(self._gateway.config.refresh_s)

    async def _warm(self, target: Target, n_copies: int) -> None:
        try:
            async with self._warm_room:
                await self._handles.warm(target, n_copies)
        except ServeError as exc:
            logger.warning("model %s is not warm, so no name moves to it yet: %s", target.key, exc.message)
        finally:
            self._warming.pop(target.key, None)

    async def _ask(self, model: ModelStatus, request: InferRequest, deadline: float) -> InferResult:
        return await self._gateway.ask(model, request, deadline)
