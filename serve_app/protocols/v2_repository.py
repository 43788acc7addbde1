"""Triton's model repository extension: what is in memory, and orders to load and unload it.

The list of models is the operator's configuration, so `load` takes no configuration and no files: it looks for new
versions where those are found in a folder, brings every version of a model into memory and keeps it there where there
is room; `unload` takes them out and refuses requests for them until they are loaded again. A model that is merely not
in memory is loaded by its next request.
"""

from functools import partial

from pydantic import BaseModel, ConfigDict, Field, JsonValue, RootModel

from deployments.errors import InvalidInput, ModelNotFound, ModelUnavailable
from deployments.orders import Order
from deployments.types import ModelState, ModelStatus
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.types import Action, Command, Endpoint, Models, RawRequest, Reply
from serve_app.protocols.v2_errors import V2

_MODEL = "/v2/repository/models/{model}"
_TRITON_STATES = {
    ModelState.READY: "READY",
    ModelState.LOADING: "LOADING",
    ModelState.UNLOADING: "UNLOADING",
}
_COLD = {
    ModelState.UNLOADED: "not in memory: the next request loads it",
    ModelState.PARKED: "parked in host RAM: the next request loads it",
}


class IndexBody(Wire):
    """`POST /v2/repository/index`; an empty body means all models."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ready": True}]})

    ready: bool = Field(default=False, description="only the models in memory")


class IndexLine(BaseModel):
    """One version of a model; `state` as in Triton, UNAVAILABLE with a reason for whatever is not in memory."""

    name: str
    version: str
    state: str
    reason: str


class Index(RootModel[list[IndexLine]]):
    """All versions of all models."""


class LoadBody(Wire):
    """`POST /v2/repository/models/{model}/load` and `/unload`; an empty body will do."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})

    parameters: dict[str, JsonValue] = Field(default_factory=dict)


def index(raw: RawRequest, models: Models) -> Reply:
    """Answer `POST /v2/repository/index`."""
    body = parse_body(raw.body, IndexBody) if raw.body.strip() else IndexBody()
    lines = [_line(model) for model in models.all() if not body.ready or model.state is ModelState.READY]
    return Reply(dump([line.model_dump() for line in lines]))


def load(raw: RawRequest, models: Models) -> Command:
    """Read `POST /v2/repository/models/{model}/load`."""
    _check_parameters(raw, ())

    def look_again() -> tuple[ModelStatus, ...]:
        try:
            return _meant(raw, models)
        except ModelNotFound as exc:  # in the words that Triton's own sample looks for
            raise ModelNotFound(f"failed to load {raw.path['model']!r}: {exc.message}", **exc.details) from None

    try:
        return Command(Order.LOAD, look_again(), look_again)
    except ModelUnavailable:  # none of its versions is known yet
        return Command(Order.LOAD, (), look_again)
    except ModelNotFound:
        name, _, version = raw.path["model"].partition(":")
        if not version or not models.versions(name):
            raise
        return Command(Order.LOAD, (), look_again)


def unload(raw: RawRequest, models: Models) -> Command:
    """Read `POST /v2/repository/models/{model}/unload`."""
    _check_parameters(raw, ("unload_dependents",))  # there are no ensembles, so no dependents
    return Command(Order.UNLOAD, _meant(raw, models))


def _line(model: ModelStatus) -> IndexLine:
    state = _TRITON_STATES.get(model.state, "UNAVAILABLE")
    reason = model.reason or _COLD.get(model.state, "")
    return IndexLine(name=model.name, version=model.version, state=state, reason=reason)


def _check_parameters(raw: RawRequest, known: tuple[str, ...]) -> None:
    body = parse_body(raw.body, LoadBody) if raw.body.strip() else LoadBody()
    for name in body.parameters.keys() - set(known):
        field = f"parameters.{name}"
        raise InvalidInput(
            f"{field}: is not served; models are configured in serve_config.yaml, not over the API", field=field
        )


def _meant(raw: RawRequest, models: Models) -> tuple[ModelStatus, ...]:
    """Return every version of the model in the path; one version where it is `name:version`."""
    name = raw.path["model"]
    if ":" in name:
        return (models.resolve(name),)
    return tuple(models.resolve(name, version) for version in models.versions(name))


_admin = partial(Endpoint, action=Action.ADMIN, dialect=V2, request=LoadBody)
ROWS = (
    Endpoint(
        "POST",
        "/v2/repository/index",
        Action.READ,
        "List models and their states",
        V2,
        answer=index,
        request=IndexBody,
        response=Index,
    ),
    _admin("POST", f"{_MODEL}/load", summary="Load a model and keep it in memory", control=load),
    _admin("POST", f"{_MODEL}/unload", summary="Unload a model and stop serving it", control=unload),
)
