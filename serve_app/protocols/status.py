"""What `GET /status` answers and `model-endpoint status` prints: who is ready, what was refused, which flags are on.

Pure: the endpoint builds it from its registry and its own environment, the CLI reads it back from JSON.
"""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel

from deployments.types import ModelState, ModelStatus, Task
from serve_app.protocols.types import Models

# What decides how fast the endpoint is and who may talk to its cluster. Read by Serve in every Ray process at import.
FLAGS = (
    "RAY_SERVE_ENABLE_HA_PROXY",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
    "RAY_AUTH_MODE",
)
_FAST = FLAGS[:2]


class ModelLine(BaseModel):
    """One model version."""

    name: str
    version: str
    task: Task
    state: ModelState
    servable: bool
    pinned: bool
    size_bytes: int
    reason: str

    @classmethod
    def of(cls, model: ModelStatus) -> Self:
        """Return what a registry knows of a model."""
        return cls(
            name=model.name,
            version=model.version,
            task=model.task,
            state=model.state,
            servable=model.is_servable,
            pinned=model.pinned,
            size_bytes=model.size_bytes,
            reason=model.reason,
        )


class EndpointStatus(BaseModel):
    """The endpoint as one ingress replica sees it; reasons by `pool`, `name:version` or `pool/entry`."""

    ready: bool
    waiting: dict[str, str]
    rejected: dict[str, str]
    models: tuple[ModelLine, ...]
    aliases: dict[str, str] = {}  # names, and what each stands for now
    flags: dict[str, str | None]  # as this ingress process sees them; null is not set

    @classmethod
    def of(cls, models: Models, environ: Mapping[str, str]) -> Self:
        """Return the status of a registry, with the flags found in `environ`."""
        readiness = models.readiness()
        return cls(
            ready=readiness.is_ready,
            waiting=dict(readiness.waiting),
            rejected=dict(readiness.rejected),
            models=tuple(ModelLine.of(model) for model in models.all()),
            aliases=dict(readiness.aliases),
            flags={flag: environ.get(flag) for flag in FLAGS},
        )


def render(status: EndpointStatus) -> str:
    """Return the status as plain text, a line a fact."""
    lines = [f"ready: {'yes' if status.ready else 'no'}"]
    lines += [f"waiting: {key}: {reason}" for key, reason in status.waiting.items()]
    lines += [f"rejected: {key}: {reason}" for key, reason in status.rejected.items()]
    lines += [f"alias: {name} stands for {target}" for name, target in status.aliases.items()]
    lines += [f"flag: {name}={'(not set)' if value is None else value}" for name, value in status.flags.items()]
    if slow := [name for name in _FAST if status.flags.get(name) != "1"]:
        lines.append(f"note: several times slower without {' and '.join(f'{name}=1' for name in slow)}")
    width = max((len(f"{model.name}:{model.version}") for model in status.models), default=0)
    return "\n".join([*lines, *(_model_line(model, width) for model in status.models)])


def _model_line(model: ModelLine, width: int) -> str:
    facts = [f"{model.name}:{model.version}".ljust(width), model.state.value.ljust(11), model.task.value]
    if model.pinned:
        facts.append("pinned")
    if model.size_bytes:
        facts.append(f"{model.size_bytes / 2**20:.1f} MiB")
    if not model.servable:
        facts.append("not servable")
    return f"model: {'  '.join(facts)}{f'  ({model.reason})' if model.reason else ''}"
