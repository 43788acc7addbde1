"""The places of the policies in `gateway.py`: what each must be able to do, in the order in which they are asked.

A policy is one file with one class of one of these shapes, made in `ingress.py` and hot-reloaded by its `configure`.
They do not import one another. A place that is None costs nothing.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from deployments.errors import ServeError
from deployments.types import InferRequest, InferResult, ModelStatus
from serve_app.config import EndpointConfig
from serve_app.context import Context
from serve_app.principals import Principal
from serve_app.routing import Plan


@dataclass(slots=True)
class Work:
    """A request on its way to its answer, after it was let in. `deadline` is on the gateway's clock."""

    request: InferRequest
    plan: Plan
    deadline: float
    context: Context


Answer: TypeAlias = Callable[[Work], Awaitable[InferResult]]


class Identity(Protocol):
    """Who is it? (`auth.py`)."""

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config."""

    async def identify(self, headers: Mapping[str, str]) -> Principal:
        """Return who sent these headers or this gRPC metadata (lower-case names). Raises Unauthenticated."""


class Router(Protocol):
    """Where does it go? (`routing.py`)."""

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config."""

    def plan(self, request: InferRequest, context: Context) -> Plan:
        """Return who answers; sets `context.arm`. Raises ModelNotFound, ModelUnavailable, PoolUnavailable."""


class Permit(Protocol):
    """What was granted to one request; given back when it ends, whichever way."""

    def release(self, context: Context, code: str) -> None:
        """Give it back and settle what the request really cost; `code` is how it ended (ok, cancelled, an error's)."""


class Limiter(Protocol):
    """How much may it? (`limits.py`)."""

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config."""

    async def admit(self, request: InferRequest, plan: Plan, context: Context) -> Permit:
        """Take from every limit that applies; sets headers. Raises RateLimited."""


class Layer(Protocol):
    """Something around the answer: cache and in-flight twins, retries, breaker, fallback."""

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config."""

    async def answer(self, work: Work, compute: Answer) -> InferResult:
        """Return the answer, with `compute` (the next layer, at last the forwarder) called as often as it takes."""


class Breaks(Protocol):
    """Who is told of streams that break off after they have begun (`breaker.py`)."""

    def broke(self, model: ModelStatus, exc: ServeError) -> None:
        """Take note of one. Must not raise."""


class Room(Protocol):
    """How many of a model may be here at once (`bulkhead.py`): for streams, which pass no layer."""

    def hold(self, work: Work) -> AbstractContextManager[None]:
        """Hold a place while the stream runs. Raises Overloaded."""


class Observer(Protocol):
    """Something that looks at what was answered: shadow traffic. Must neither wait nor raise."""

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config."""

    def answered(self, work: Work, result: InferResult) -> None:
        """See one answer."""


class Log(Protocol):
    """The request log. Must neither wait nor raise."""

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config."""

    def record(self, context: Context) -> None:
        """Take one finished request, failed or not."""


@dataclass(frozen=True, slots=True)
class Policies:
    """All policies of an endpoint; `layers` from the outside in."""

    identity: Identity | None = None
    router: Router | None = None
    limiter: Limiter | None = None
    layers: tuple[Layer, ...] = ()
    openings: tuple[Layer, ...] = ()  # those of the layers that a stream passes until its first piece
    room: Room | None = None
    breaks: Breaks | None = None
    observers: tuple[Observer, ...] = ()
    log: Log | None = None

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config to all of them."""
        places = (self.identity, self.router, self.limiter, *self.layers, *self.observers, self.log)
        for policy in places:
            if policy is not None:
                policy.configure(config)
