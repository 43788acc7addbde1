"""What V2 says of the server and its models: health, readiness and metadata, in the shapes every client accepts.

Called through the rows in `ENDPOINTS`.
"""

from functools import partial

from deployments.errors import ModelUnavailable
from deployments.types import TensorSpec
from serve_app import __version__
from serve_app.protocols.json_body import dump
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Readiness, Reply
from serve_app.protocols.v2_errors import MODEL, V2, VERSION
from serve_app.protocols.v2_schema import Health, ModelMetadata, ModelNames, ModelReady, ServerMetadata

PLATFORM = "pytorch"
# Triton's names; only what works here is named: perf_analyzer acts on them.
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)


def server(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v2`."""
    return Reply(dump({"name": models.server_name, "version": __version__, "extensions": EXTENSIONS}))


def live(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v2/health/live`: 200 while the process lives."""
    return Reply(dump({"live": True, "ready": models.readiness().is_ready}))


def ready(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v2/health/ready`: 503 and what is waited for, until all pinned models are ready."""
    readiness = models.readiness()
    if readiness.is_ready:
        return Reply(dump({"ready": True, "live": True}))
    return Reply(dump({"error": _waiting(readiness), "ready": False, "live": True}), status=503)


def names(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v2/models`."""
    return Reply(dump({"models": list(dict.fromkeys(status.name for status in models.all()))}))


def model(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v2/models/{model}[/versions/{version}]`."""
    status = models.resolve(raw.path["model"], raw.path.get("version"))
    body = {
        "name": status.name,
        "versions": models.versions(status.name),
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in status.signature.inputs],
        "outputs": [_tensor(spec) for spec in status.signature.outputs],
        "properties": {"task": status.task, "version": status.version, "state": status.state},
    }
    return Reply(dump(body))


def model_ready(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /v2/models/{model}[/versions/{version}]/ready`: 200 if a request sent now would be answered."""
    status = models.resolve(raw.path["model"], raw.path.get("version"))
    if status.is_servable:
        return Reply(dump({"name": status.name, "ready": True}))
    why = status.reason or f"it is {status.state}"
    message = f"{status.name!r} version {status.version} is not at ready state: {why}"
    raise ModelUnavailable(message, reason=why)


_open = partial(Endpoint, action=Action.OPEN, dialect=V2)
_read = partial(Endpoint, action=Action.READ, dialect=V2)
_model = partial(_read, answer=model, response=ModelMetadata)
_ready = partial(_read, answer=model_ready, response=ModelReady)
ROWS = (
    _open("GET", "/v2", summary="Describe the server", answer=server, response=ServerMetadata),
    _open("GET", "/v2/health/live", summary="Is the server alive", answer=live, response=Health),
    _open("GET", "/v2/health/ready", summary="Is the server ready", answer=ready, response=Health),
    _read("GET", "/v2/models", summary="List model names", answer=names, response=ModelNames),
    _model("GET", MODEL, summary="Describe a model's tensors"),
    _model("GET", VERSION, summary="Describe the tensors of one version"),
    _ready("GET", f"{MODEL}/ready", summary="Is a model ready"),
    _ready("GET", f"{VERSION}/ready", summary="Is one version of a model ready"),
)


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _waiting(readiness: Readiness) -> str:
    parts = [f"{key}: {reason}" for key, reason in readiness.waiting.items()]
    return "not ready; waiting for " + ("; ".join(parts) or "its pools")
