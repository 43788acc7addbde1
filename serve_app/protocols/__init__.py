"""The table of all routes. A new endpoint is a codec file beside this one and its rows here.

Read by `serve_app.http`, which serves them, and by `openapi`, which describes them. A row with neither `parse` nor
`answer` is answered by the gateway: `/metrics` alone. A path with a trailing slash is the same path.
"""

from functools import cache, partial

from pydantic import BaseModel

from serve_app.protocols import native, openai, openai_schema, service, v2, v2_metadata, v2_schema
from serve_app.protocols.json_body import dump
from serve_app.protocols.openapi import document
from serve_app.protocols.status import EndpointStatus
from serve_app.protocols.types import Action, Endpoint, Envelope, Models, RawRequest, Reply

__all__ = ["ENDPOINTS", "envelope_of"]

_INFER, _READ, _OPEN = Action.INFER, Action.READ, Action.OPEN
_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"
_v2 = partial(Endpoint, envelope=v2.envelope, tag="Open Inference Protocol V2")
_v2_infer = partial(_v2, parse=v2.parse_infer, request=v2_schema.InferBody, response=v2_schema.InferResponse)
_v2_model = partial(_v2, answer=v2_metadata.model, response=v2_schema.ModelMetadata)
_v2_ready = partial(_v2, answer=v2_metadata.model_ready, response=v2_schema.ModelReady)
_native = partial(Endpoint, envelope=native.envelope, tag="Native")
_openai = partial(Endpoint, envelope=openai.envelope, tag="OpenAI")
_service = partial(Endpoint, envelope=native.envelope, tag="Service")


@cache
def _document() -> bytes:
    errors: dict[Envelope, type[BaseModel]] = {
        v2.envelope: v2_schema.V2Error,
        native.envelope: native.NativeError,
        openai.envelope: openai_schema.OpenAIError,
    }
    return dump(document(ENDPOINTS, errors))


def _openapi(raw: RawRequest, models: Models) -> Reply:
    return Reply(_document())


ENDPOINTS: tuple[Endpoint, ...] = (
    _native(
        "POST",
        "/v1/predict",
        _INFER,
        "Run any model by its task",
        parse=native.parse_predict,
        request=native.PredictRequest,
        response=native.PredictResponse,
    ),
    _openai(
        "POST",
        "/v1/embeddings",
        _INFER,
        "Embed texts",
        parse=openai.parse_embeddings,
        request=openai_schema.EmbeddingsRequest,
        response=openai_schema.EmbeddingsResponse,
    ),
    _v2_infer("POST", f"{_MODEL}/infer", _INFER, "Run a model on tensors"),
    _v2_infer("POST", f"{_VERSION}/infer", _INFER, "Run one version of a model on tensors"),
    _v2_infer(
        "POST",
        "/v2/predict",
        _INFER,
        "Run the model named in the body on tensors",
        parse=v2.parse_predict,
        request=v2_schema.PredictBody,
    ),
    _openai(
        "GET",
        "/v1/models",
        _READ,
        "List models",
        answer=openai.list_models,
        response=openai_schema.OpenAIModelList,
    ),
    _openai(
        "GET",
        "/v1/models/{id:path}",
        _READ,
        "Describe a model",
        answer=openai.retrieve_model,
        response=openai_schema.OpenAIModel,
    ),
    _v2("GET", "/v2", _OPEN, "Describe the server", answer=v2_metadata.server, response=v2_schema.ServerMetadata),
    _v2("GET", "/v2/health/live", _OPEN, "Is the server alive", answer=v2_metadata.live, response=v2_schema.Health),
    _v2("GET", "/v2/health/ready", _OPEN, "Is the server ready", answer=v2_metadata.ready, response=v2_schema.Health),
    _v2("GET", "/v2/models", _READ, "List model names", answer=v2_metadata.names, response=v2_schema.ModelNames),
    _v2_model("GET", _MODEL, _READ, "Describe a model's tensors"),
    _v2_model("GET", _VERSION, _READ, "Describe the tensors of one version"),
    _v2_ready("GET", f"{_MODEL}/ready", _READ, "Is a model ready"),
    _v2_ready("GET", f"{_VERSION}/ready", _READ, "Is one version of a model ready"),
    _service("GET", "/health", _OPEN, "Does the process live", answer=service.health, response=service.Alive),
    _service("GET", "/ready", _OPEN, "Is the endpoint ready", answer=service.ready, response=service.Ready),
    _service("GET", "/status", _READ, "Models, refused entries, flags", answer=service.status, response=EndpointStatus),
    _service("GET", "/metrics", Action.METRICS, "Metrics in Prometheus text"),
    _service("GET", "/openapi.json", _OPEN, "This API as an OpenAPI document", answer=_openapi),
    _service("GET", "/docs", _OPEN, "This API as a page to read and try", answer=service.docs),
)

_PREFIXES: tuple[tuple[str, Envelope], ...] = (
    ("/v2", v2.envelope),
    ("/v1/embeddings", openai.envelope),
    ("/v1/models", openai.envelope),
)


def envelope_of(path: str) -> Envelope:
    """Return the error envelope of the protocol a path belongs to, whether or not there is such a path."""
    for prefix, envelope in _PREFIXES:
        if path == prefix or path.startswith(f"{prefix}/"):
            return envelope
    return native.envelope
