"""Health, readiness and the documentation page: what operators, probes and newcomers read.

Called through the rows in `ENDPOINTS`.
"""

import os
from functools import cache
from importlib import resources

from pydantic import BaseModel

from serve_app.protocols.json_body import dump
from serve_app.protocols.native import NativeError, envelope
from serve_app.protocols.status import EndpointStatus
from serve_app.protocols.types import Action, Dialect, Endpoint, Models, RawRequest, Reply

_ALIVE = dump({"status": "ok"})


class Alive(BaseModel):
    """The process lives."""

    status: str


class Ready(BaseModel):
    """Whether the endpoint is ready; `waiting` and `rejected` say why by pool or model."""

    ready: bool
    waiting: dict[str, str]
    rejected: dict[str, str]


def health(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /health`: 200 while the process lives."""
    return Reply(_ALIVE)


def ready(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /ready`: 503 until all pinned models of all required pools are ready."""
    readiness = models.readiness()
    body = {"ready": readiness.is_ready, "waiting": dict(readiness.waiting), "rejected": dict(readiness.rejected)}
    return Reply(dump(body), status=200 if readiness.is_ready else 503)


def status(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /status`: every model's state, refused entries, and the flags this process runs under."""
    return Reply(EndpointStatus.of(models, os.environ).model_dump_json().encode())


def docs(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /docs`: one page without outside resources, made from `/openapi.json` by its own script."""
    return Reply(_page(), media_type="text/html; charset=utf-8")


SERVICE = Dialect("Service", envelope, NativeError)
ROWS = (
    Endpoint("GET", "/health", Action.OPEN, "Does the process live", SERVICE, answer=health, response=Alive),
    Endpoint("GET", "/ready", Action.OPEN, "Is the endpoint ready", SERVICE, answer=ready, response=Ready),
    Endpoint(
        "GET", "/status", Action.READ, "Models, refused entries, flags", SERVICE, answer=status, response=EndpointStatus
    ),
    Endpoint("GET", "/metrics", Action.METRICS, "Metrics in Prometheus text", SERVICE),
    Endpoint("GET", "/docs", Action.OPEN, "This API as a page to read and try", SERVICE, answer=docs),
)


@cache
def _page() -> bytes:
    return resources.files("serve_app").joinpath("static/docs.html").read_bytes()
