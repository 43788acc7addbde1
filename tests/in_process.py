"""The whole endpoint in one process without Ray: one pool replica behind the real gateway with all traffic policies.

For tests (and benchmarks/policies.py) that need real answers: tiny models, or whatever entries they are given.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from deployments.chunks import Chunk
from deployments.hop import pack_requests, unpack_requests
from deployments.replica import PoolReplica
from deployments.spec import PoolArgs
from deployments.statistics import ModelStatistics
from deployments.types import InferRequest, ModelState
from serve_app.breaker import Breakers
from serve_app.bulkhead import Bulkheads
from serve_app.cache import ResponseCache
from serve_app.config import EndpointConfig, PoolRef
from serve_app.fallback import FallbackChain
from serve_app.forwarder import Forwarder
from serve_app.gateway import Gateway
from serve_app.http import build_asgi
from serve_app.lanes import Call, Outcomes, Target
from serve_app.policies import Layer, Policies
from serve_app.protocols.types import Command
from serve_app.registry import Registry
from serve_app.retry import Retry
from serve_app.routing import Routes
from serve_app.shadow import Shadows
from serve_app.streams import Streams
from serve_app.telemetry import IngressMetrics

MAX_BODY_BYTES = 2**20


@dataclass(slots=True)
class Endpoint:
    """Its parts."""

    replica: PoolReplica
    registry: Registry
    gateway: Gateway
    metrics: IngressMetrics
    n_calls: int = 0

    def asgi(self) -> Starlette:
        return build_asgi(self.gateway, MAX_BODY_BYTES)

    async def send(self, call: Call) -> Outcomes:
        self.n_calls += 1
        requests = unpack_requests(pack_requests(call.requests, call.timeouts_s))
        async for some in self.replica.infer_many(call.target.key, requests, call.backlog, call.sender):
            yield some

    async def stream(self, target: Target, request: InferRequest, copy: int) -> AsyncGenerator[Sequence[Chunk], None]:
        async with aclosing(self.replica.stream(target.key, request)) as chunks:
            async for ready in chunks:
                yield ready

    async def refresh(self) -> None:
        self.registry.update("pool", self.replica.status())

    async def ready(self) -> None:
        """Wait until every pinned model is in memory."""
        while self._is_loading():  # noqa: ASYNC110 - a replica tells nobody
            await asyncio.sleep(0.01)
        await self.refresh()

    def _is_loading(self) -> bool:
        return any(model.pinned and model.state is not ModelState.READY for model in self.replica.statuses())

    async def command(self, command: Command) -> None:
        """Take no orders."""

    async def statistics(self) -> Mapping[str, ModelStatistics]:
        return {}

    async def page(self) -> bytes:
        return b"# no metrics here\n"


@asynccontextmanager
async def endpoint(
    cache_dir: Path, models: Sequence[Mapping[str, Any]], config: Mapping[str, Any], *, has_policies: bool = True
) -> AsyncIterator[Endpoint]:
    """Run an endpoint on this loop."""
    replica = PoolReplica(PoolArgs(budget_bytes=2**30, cache_dir=str(cache_dir), threads=1))
    replica.configure({"models": list(models)})
    registry, metrics = Registry(), IngressMetrics()
    one = Endpoint(replica, registry, None, metrics)  # type: ignore[arg-type]
    forwarder = Forwarder(one.send, observe=metrics.call)

    async def ask(model: Any, request: Any, deadline: float) -> Any:
        return await forwarder.forward(registry.target(model), request, deadline)

    traffic = metrics.traffic
    layers: tuple[Layer, ...] = (
        FallbackChain(registry, traffic),
        ResponseCache(traffic),
        Bulkheads(traffic),
        Retry(traffic),
        Breakers(traffic),
    )
    shadows = Shadows(registry, ask, traffic)
    policies = Policies(router=Routes(registry), layers=layers, observers=(shadows,)) if has_policies else Policies()
    one.gateway = Gateway(registry, forwarder, metrics, _Pools(one), policies, streams=Streams(one.stream))
    parsed = EndpointConfig.model_validate(config)
    one.gateway.configure(parsed)
    registry.configure({"pool": PoolRef()}, {}, parsed.aliases)
    await one.ready()
    try:
        yield one
    finally:
        await shadows.aclose()
        await forwarder.aclose()
        await replica.aclose()


@dataclass(frozen=True, slots=True)
class _Pools:
    one: Endpoint

    async def command(self, command: Command) -> None:
        await self.one.command(command)

    async def statistics(self) -> Mapping[str, ModelStatistics]:
        return await self.one.statistics()

    async def metrics(self) -> bytes:
        return await self.one.page()


@contextmanager
def served(cache_dir: Path, models: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Iterator[str]:
    """Serve an endpoint over HTTP on loopback from a thread; give its URL."""
    started: threading.Event = threading.Event()
    found: dict[str, Any] = {}

    async def run() -> None:
        async with endpoint(cache_dir, models, config) as one:
            server = uvicorn.Server(uvicorn.Config(one.asgi(), "127.0.0.1", 0, log_config=None, lifespan="off"))
            found["server"] = server
            serving = asyncio.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110 - nor does uvicorn
                await asyncio.sleep(0.01)
            found["port"] = server.servers[0].sockets[0].getsockname()[1]
            started.set()
            await serving

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    if not started.wait(60):
        raise RuntimeError("the endpoint did not start")
    try:
        yield f"http://127.0.0.1:{found['port']}"
    finally:
        found["server"].should_exit = True
        thread.join(30)
