"""What every codec works with: a raw request in, a reply out, and the row that ties both to a path.

Codecs are pure: bytes and a view of the models in; `InferRequest` and a renderer out. No I/O, no Ray, no Starlette.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, TypeAlias

from pydantic import BaseModel

from deployments.chunks import Chunk
from deployments.errors import ServeError
from deployments.orders import Order
from deployments.statistics import ModelStatistics
from deployments.types import InferRequest, InferResult, ModelStatus

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class RawRequest:
    """One HTTP request, read completely: path parameters, query, headers (lower-case names), body."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer."""

    body: bytes = b""
    status: int = 200
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the endpoint is ready, and what it waits for or refused: reasons by pool, `name:version` or alias."""

    is_ready: bool
    waiting: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)  # names, and the model each stands for now


def shown(name: str) -> str:
    """Return a name that a client made up as messages and caches may hold it: no longer than any model's."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


_LONGEST_NAME = 257  # `name:version`


class Models(Protocol):
    """The registry as codecs see it."""

    @property
    def server_name(self) -> str:
        """What the endpoint calls itself."""

    def resolve(self, name: str, version: str | None = None) -> ModelStatus:
        """Return the model a request means; `name` may be `name:version`. Raises ModelNotFound."""

    def all(self) -> tuple[ModelStatus, ...]:
        """Return every model version the pools offer, by name then version, the default version of each name last."""

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a model, oldest first, the default one last. Raises ModelNotFound."""

    def readiness(self) -> Readiness:
        """Return whether all pinned models of all required pools are ready."""


@dataclass(frozen=True, slots=True)
class Command:
    """Something to be done to models, not asked of them."""

    order: Order
    models: tuple[ModelStatus, ...]
    look_again: Callable[[], tuple[ModelStatus, ...]] | None = None  # for `models`, once pools have found new versions
    reply: Reply = Reply()  # over HTTP, once it is done


class StreamRender(Protocol):
    """One streamed answer as a body: pieces of it in order, made as the chunks come. Keeps what it must remember."""

    media_type: str

    def chunks(self, ready: Sequence[Chunk]) -> bytes:
        """Return the piece for what is ready."""

    def end(self) -> bytes:
        """Return the last piece of an answer that went well."""

    def error(self, error: ServeError, request_id: str) -> bytes:
        """Return the last piece of an answer that broke off."""


Render: TypeAlias = Callable[[InferResult], Reply]
Parse: TypeAlias = Callable[[RawRequest, Models], tuple[InferRequest, Render | StreamRender]]
Answer: TypeAlias = Callable[[RawRequest, Models], Reply]
Control: TypeAlias = Callable[[RawRequest, Models], Command]
Counted: TypeAlias = Mapping[str, ModelStatistics]  # by `name:version`
Count: TypeAlias = Callable[[RawRequest, Models, Counted], Reply]
Envelope: TypeAlias = Callable[[ServeError, str], bytes]  # (error, request id) -> JSON body


class Action(StrEnum):
    """What a caller tries to do: the unit of authorisation."""

    INFER = "infer"
    READ = "read"
    ADMIN = "admin"
    METRICS = "metrics"
    OPEN = "open"  # health and documentation: never needs a key


@dataclass(frozen=True, slots=True)
class Dialect:
    """One family of clients: how its errors look. Paths under `prefixes` that no row has are answered in it too.

    `statuses` are HTTP statuses by error code, where they are others than the error's own.
    """

    tag: str
    envelope: Envelope
    error: type[BaseModel]
    prefixes: tuple[str, ...] = ()
    statuses: Mapping[str, int] = field(default_factory=dict)

    def status(self, error: ServeError) -> int:
        """Return the HTTP status of an error."""
        return self.statuses.get(error.code, error.status)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the route table.

    It has one of `parse` (an inference), `answer` (from the registry), `count` (from what pools counted), `control`.
    `path` is a Starlette path. `request` and `response` are the pydantic models the OpenAPI document shows.
    """

    method: str
    path: str
    action: Action
    summary: str
    dialect: Dialect
    parse: Parse | None = None
    answer: Answer | None = None
    count: Count | None = None
    control: Control | None = None
    request: type[BaseModel] | None = None
    response: type[BaseModel] | None = None
    example_model: str = "minilm"  # what the document shows for {model}
    streams: Literal["never", "asked", "always"] = "never"  # as server-sent events
    is_served: bool = True  # False: refused with 501, always
