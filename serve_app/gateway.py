"""The only path from a parsed request to an answer, whatever door it came through.

Called by `http.py`, by gRPC and by `ingress.py` for Python callers; knows no protocol. A door makes a `Context`, calls
`authenticate`, then `infer` (or reads `visible`), then `record`. One line a policy, in this order (`policies.py`):

    authenticate → plan (resolve the name, choose targets) → authorise → admit → [layers: cache, retry, fallback]
    → forward under the deadline → observers (shadows) → record
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol

from deployments.chunks import GENERATIVE_TASKS, Chunk, Said, collect
from deployments.errors import DeadlineExceeded, InvalidInput, ServeError
from deployments.statistics import ModelStatistics
from deployments.tracing import traceparent
from deployments.types import MONOTONIC, Clock, InferRequest, InferResult, ModelStatus, Operation
from serve_app.access import authorise, permit_action, visible_models
from serve_app.config import EndpointConfig
from serve_app.context import CANCELLED, Context
from serve_app.forwarder import Forwarder
from serve_app.opening import Opening
from serve_app.policies import Answer, Policies, Work
from serve_app.principals import ANONYMOUS, CLUSTER
from serve_app.protocols.types import Action, Command, Models
from serve_app.registry import Registry
from serve_app.routing import Plan
from serve_app.streams import Streams
from serve_app.telemetry import IngressMetrics


class Pools(Protocol):
    """What the gateway asks of the pools beside inference."""

    async def command(self, command: Command) -> None:
        """Load or unload models. Raises ServeError."""

    async def statistics(self) -> Mapping[str, ModelStatistics]:
        """Return what was counted, by `name:version`."""

    async def metrics(self) -> bytes:
        """Return the metrics of all replicas in Prometheus' text format."""


class Gateway:
    """Answers requests."""

    def __init__(
        self,
        registry: Registry,
        forwarder: Forwarder,
        metrics: IngressMetrics,
        pools: Pools,
        policies: Policies | None = None,
        clock: Clock = MONOTONIC,
        streams: Streams | None = None,
    ) -> None:
        self.models = registry
        self.config = EndpointConfig()
        self._forwarder = forwarder
        self._streams = streams
        self._metrics = metrics
        self._pools = pools
        self._policies = policies or Policies()
        self._clock = clock
        self._answer: Answer = self._forward
        for layer in reversed(self._policies.layers):
            self._answer = partial(layer.answer, compute=self._answer)
        self._opening = Opening(self._policies.openings, self._pieces, clock, self._policies.breaks)

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config, to all policies as well."""
        self.config = config
        self._policies.configure(config)

    async def authenticate(self, context: Context, headers: Mapping[str, str]) -> None:
        """Find out who asks and whether they may do `context.action` at all; before the body is read.

        `headers` are HTTP headers or gRPC metadata, lower-case names.

        Raises:
            Unauthenticated: nobody we know.
            PermissionDenied: somebody who may not do this to any model.
        """
        context.metadata = headers
        if context.action is Action.OPEN:
            return
        started = self._clock()
        identity = self._policies.identity
        context.principal = await identity.identify(headers) if identity else ANONYMOUS
        permit_action(context)
        context.phases["auth"] = self._clock() - started

    def visible(self, context: Context) -> Models:
        """Return the models as this principal may see and use them: what codecs read."""
        return visible_models(self.models, context)

    async def infer(self, request: InferRequest, context: Context) -> InferResult:
        """Answer one request.

        Raises:
            ServeError: whatever went wrong, ready to be rendered.
        """
        async with self._admitted(request, context) as work:
            result = await self._answer(work)
            context.answered(result)
            for observer in self._policies.observers:
                observer.answered(work, result)
            return result

    async def ask(self, model: ModelStatus, request: InferRequest, deadline: float) -> InferResult:
        """Have one model answer, without any policy: for shadows. Raises ServeError."""
        return await self._forward(Work(request, Plan(model.name, model), deadline, Context()))

    async def stream(self, request: InferRequest, context: Context) -> AsyncGenerator[Sequence[Chunk], None]:
        """Yield the answer of a generating model as it comes, what is ready together at once; close it to stop.

        The same policies as `infer`, but for the cache; retry, breaker and fallback have a say until the first piece.

        Raises:
            ServeError: before the first piece, or later.
        """
        said = Said()
        async with self._admitted(request, context) as work:
            try:
                async with self._streamed(work) as pieces:
                    async for ready in pieces:
                        said.add(ready)
                        yield ready
            finally:
                _charge(context, said)

    @asynccontextmanager
    async def _admitted(self, request: InferRequest, context: Context) -> AsyncIterator[Work]:
        """All that stands before and after an answer, streamed or not: plan, authorise, admit; release, count."""
        started = self._clock()
        context.request = request
        plan = self._plan(request, context)
        authorise(context.principal, Action.INFER, plan.asked, plan.primary)
        model = plan.primary
        context.model, context.version = model.name, model.version
        code = CANCELLED
        limiter, permit = self._policies.limiter, None
        try:
            deadline = started + self._timeout_s(request, model.timeout_s)
            permit = await limiter.admit(request, plan, context) if limiter else None
            yield Work(_stamped(request, context), plan, deadline, context)
            code = "ok"
        except ServeError as exc:
            code = exc.code
            raise
        finally:
            if permit is not None:
                permit.release(context, code)
            seconds = self._clock() - started
            self._metrics.request(model, code, seconds)
            if context.arm:
                self._metrics.traffic.arm(plan.asked, context.arm, code, seconds)

    def record(self, context: Context) -> None:
        """Write a finished request down; every door calls this once a request, however it ended."""
        if self._policies.log is not None:
            self._policies.log.record(context)

    async def control(self, command: Command) -> None:
        """Load or unload models in their pools; returns when it is done.

        Raises:
            ServeError: a model could not be loaded, or not in time: it goes on loading then.
        """
        wait_s = self.config.max_timeout_s
        try:
            async with asyncio.timeout(wait_s):
                await self._pools.command(command)
        except TimeoutError:
            message = (
                f"{command.order.verb} was ordered, but is not done after {wait_s:g} s; /v2/repository/index tells"
            )
            raise DeadlineExceeded(message, timeout_s=wait_s) from None

    async def statistics(self) -> Mapping[str, ModelStatistics]:
        """Return what the pools have counted, by `name:version`."""
        return await self._pools.statistics()

    async def metrics(self) -> bytes:
        """Return the metrics of all replicas in Prometheus' text format."""
        return await self._pools.metrics()

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one finished HTTP request."""
        self._metrics.http(method, route, status, seconds)

    def observe_rpc(self, method: str, code: str, seconds: float) -> None:
        """Count one finished gRPC call."""
        self._metrics.rpc(method, code, seconds)

    def _plan(self, request: InferRequest, context: Context) -> Plan:
        if self._policies.router is not None:
            plan = self._policies.router.plan(request, context)
            if request.operation is Operation.INFER:
                return plan
            return replace(plan, fallback=None, shadows=())  # another model's tokens are no answer
        model = self.models.resolve(request.model, request.version)
        return Plan(model.name, model)

    async def _forward(self, work: Work) -> InferResult:
        if work.plan.primary.task in GENERATIVE_TASKS:
            # A call of its own: it takes long, and its client's going away must stop it at once.
            said = Said()
            try:
                async with aclosing(self._pieces(work)) as pieces:
                    return await collect(pieces, said)
            finally:
                _charge(work.context, said)
        return await self._forwarder.forward(self.models.target(work.plan.primary), work.request, work.deadline)

    @asynccontextmanager
    async def _streamed(self, work: Work) -> AsyncIterator[AsyncGenerator[Sequence[Chunk], None]]:
        room = self._policies.room
        with room.hold(work) if room else nullcontext():
            async with aclosing(self._opening.stream(work)) as pieces:
                yield pieces

    def _pieces(self, work: Work) -> AsyncGenerator[Sequence[Chunk], None]:
        model = work.plan.primary
        if model.task not in GENERATIVE_TASKS or self._streams is None:
            raise InvalidInput(f"model {model.name!r} does {model.task}, which does not stream", field="model")
        return self._streams.stream(self.models.target(model), work.request, work.deadline)

    def _timeout_s(self, request: InferRequest, default_s: float) -> float:
        """Return the time a request may take: its own wish or the model's default, capped by both and the operator."""
        if request.timeout_s is None:
            return min(default_s, self.config.max_timeout_s)
        if request.timeout_s <= 0:
            raise InvalidInput("timeout must be greater than 0", field="timeout_s")
        return min(request.timeout_s, default_s, self.config.max_timeout_s)


def _charge(context: Context, said: Said) -> None:
    """Note what was generated before limits are settled: it costs its tokens, however its stream ended."""
    if (result := said.result()) is not None:
        context.answered(result)


def _stamped(request: InferRequest, context: Context) -> InferRequest:
    """Return the request as its principal's; code inside the cluster may have said whose work it does."""
    principal = context.principal
    trace = traceparent(context.metadata.get("traceparent", request.trace))
    if principal is CLUSTER:
        return replace(request, tenant=request.tenant or principal.name, trace=trace)
    return replace(request, tenant=principal.name, priority=principal.priority, trace=trace)
