"""Triton's extensions that this server does not have, answered so that their clients say why.

They are shared memory between client and server, and the settings of Triton's own tracing and logging. What can be read
is answered with everything off; what would change something is 501. Unregistering regions, which Triton's samples do
first of all, succeeds: there are none. `extensions` does not name any of this.
"""

from functools import partial

from pydantic import BaseModel, RootModel

from deployments.errors import NotServed
from serve_app.protocols.json_body import dump
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Reply
from serve_app.protocols.v2_errors import MODEL, V2
from serve_app.protocols.v2_outputs import SHARED_MEMORY

TRACE: dict[str, str | list[str]] = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
}
LOGGING: dict[str, str | bool | int] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
TRACE_REASON = "trace settings cannot be updated: traces follow the traceparent header and Serve's tracing_config"
LOGGING_REASON = "log settings cannot be updated through a network protocol: serve_config.yaml has them"


class TraceSettings(BaseModel):
    """Triton's trace settings; all off."""

    trace_file: str
    trace_level: list[str]
    trace_rate: str
    trace_count: str
    log_frequency: str


class LogSettings(BaseModel):
    """Triton's log settings; fixed here."""

    log_file: str
    log_info: bool
    log_warning: bool
    log_error: bool
    log_verbose_level: int
    log_format: str


class Regions(RootModel[list[dict[str, str]]]):
    """Shared memory regions: none."""


class Done(RootModel[dict[str, str]]):
    """Nothing."""


def regions(raw: RawRequest, models: Models) -> Reply:
    """Answer a question for registered regions."""
    return Reply(b"[]")


def unregister(raw: RawRequest, models: Models) -> Reply:
    """Answer `POST …/unregister`: whatever is named is not registered afterwards."""
    return Reply(b"{}")


def register(raw: RawRequest, models: Models) -> Reply:
    """Refuse `POST …/register`."""
    raise NotServed(SHARED_MEMORY)


def trace(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET …/trace/setting`."""
    if "model" in raw.path:
        models.resolve(raw.path["model"])
    return Reply(dump(TRACE))


def update_trace(raw: RawRequest, models: Models) -> Reply:
    """Refuse `POST …/trace/setting`."""
    raise NotServed(TRACE_REASON)


def log(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v2/logging`."""
    return Reply(dump(LOGGING))


def update_log(raw: RawRequest, models: Models) -> Reply:
    """Refuse `POST /v2/logging`."""
    raise NotServed(LOGGING_REASON)


_read = partial(Endpoint, "GET", action=Action.READ, dialect=V2)
_change = partial(Endpoint, "POST", action=Action.READ, dialect=V2)


def _shared(kind: str) -> tuple[Endpoint, ...]:
    root, one = f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/region/{{region}}"
    what = f"{kind} shared memory: always none"
    return (
        *(_read(f"{base}/status", summary=what, answer=regions, response=Regions) for base in (root, one)),
        *(_change(f"{base}/unregister", summary=what, answer=unregister, response=Done) for base in (root, one)),
        _change(f"{one}/register", summary=f"{kind} shared memory: refused", answer=register, is_served=False),
    )


ROWS = (
    *_shared("system"),
    *_shared("cuda"),
    *(
        _read(f"{base}/trace/setting", summary="Triton's trace settings: all off", answer=trace, response=TraceSettings)
        for base in ("/v2", MODEL)
    ),
    *(
        _change(
            f"{base}/trace/setting",
            summary="Refused: traces are set up elsewhere",
            answer=update_trace,
            is_served=False,
        )
        for base in ("/v2", MODEL)
    ),
    _read("/v2/logging", summary="Triton's log settings: fixed", answer=log, response=LogSettings),
    _change("/v2/logging", summary="Refused: logs are set up elsewhere", answer=update_log, is_served=False),
)
