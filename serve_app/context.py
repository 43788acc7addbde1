"""What travels with one request from its door to its answer: who asks, what was decided, how long each part took.

Made by a door (`http.py`, `ingress.py`, gRPC), filled by `gateway.py` and its policies, read again by the door, which
sends `headers` and `server_timing()` with whatever it answers, and by the request log. Holds facts, decides nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from deployments.errors import ServeError
from deployments.types import MONOTONIC, InferRequest, InferResult, Timings, Usage
from serve_app.principals import NOBODY, Principal
from serve_app.protocols.types import Action

CANCELLED = "cancelled"  # the code of a request whose client left


class Door(StrEnum):
    """Where a request came in."""

    HTTP = "http"
    GRPC = "grpc"
    PYTHON = "python"


@dataclass(slots=True)
class Context:
    """One request. `code` and `status` say how it ended; until then it counts as left by its client.

    `headers` are added to the answer (gRPC: trailing metadata), errors included. `phases` are seconds, in order.
    """

    request_id: str = ""
    door: Door = Door.HTTP
    method: str = ""
    route: str = ""  # path template or rpc, never a path
    action: Action = Action.INFER
    principal: Principal = NOBODY
    metadata: Mapping[str, str] = field(default_factory=dict)  # headers or gRPC metadata as they came, lower-case names
    started: float = field(default_factory=MONOTONIC)

    model: str = ""
    version: str = ""
    arm: str = ""
    fallback: str = ""  # who stood in for the model asked: its key, or `static`
    code: str = CANCELLED
    status: int = 499
    usage: Usage = field(default_factory=Usage)
    phases: dict[str, float] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    request: InferRequest | None = None
    result: InferResult | None = None

    def ended(self, status: int, code: str = "ok") -> None:
        """Say how the request ended."""
        self.status, self.code = status, code

    def answered_by(self, result: InferResult) -> None:
        """Take who gave the answer: another model than the one asked may have stood in."""
        self.model, self.version = result.model, result.version

    def answered(self, result: InferResult) -> None:
        """Take what the answer says of its giver, its cost and its way."""
        self.answered_by(result)
        self.result = result
        self.took(result.usage, result.timings)

    def took(self, usage: Usage, times: Timings) -> None:
        """Take what an answer has cost; a streamed one says so with its last piece."""
        self.usage = usage
        for name, seconds in (
            ("load", times.load_s),
            ("prepare", times.prepare_s),
            ("queue", times.queue_s),
            ("run", times.run_s),
        ):
            self.phases[name] = seconds

    def audited(self, path: Mapping[str, str]) -> dict[str, object]:
        """Return what the audit trail keeps of a request to do something to what is at `path`."""
        return {
            "principal": self.principal.name,
            "credential": self.principal.credential,
            "path": dict(path),
            "status": self.status,
            "code": self.code,
            "request_id": self.request_id,
        }

    def server_timing(self, now: float) -> str:
        """Return the value of `Server-Timing`: every phase so far and the total, in milliseconds."""
        parts = [f"{name};dur={seconds * 1e3:.3f}" for name, seconds in self.phases.items()]
        return ", ".join([*parts, f"total;dur={(now - self.started) * 1e3:.3f}"])


@contextmanager
def recorded(context: Context, record: Callable[[Context], None]) -> Iterator[None]:
    """Note how the block ended, and record it: for doors whose caller renders the error."""
    try:
        yield
        context.ended(200)
    except ServeError as exc:
        context.ended(exc.status, exc.code)
        raise
    finally:
        record(context)
