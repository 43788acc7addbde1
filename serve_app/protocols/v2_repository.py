"""Triton's model repository extension: what is in memory, and orders to load and unload it.

The list of models is the operator's configuration, so `load` takes no files, and of a configuration the size of batches
only: it looks for new versions where those are found in a folder, brings every version of a model into memory and keeps
it there where there is room; `unload` takes them out and refuses requests for them until they are loaded again. A model
that is merely not in memory is loaded by its next request.
"""

from functools import partial

from pydantic import BaseModel, ConfigDict, Field, JsonValue, RootModel

from deployments.errors import InvalidInput, ModelNotFound, ModelUnavailable, NotServed
from deployments.orders import UNLOAD, Order, Verb
from deployments.types import ModelState, ModelStatus
from serve_app.protocols.json_body import Wire, dump, parse_body
from serve_app.protocols.types import Action, Command, Endpoint, Models, RawRequest, Reply
from serve_app.protocols.v2_errors import V2
from serve_app.protocols.v2_override import read_override

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

    parameters: dict[str, JsonValue] = Field(
        default_factory=dict, description="load: `config`, a JSON object as a string, of which max_batch_size counts"
    )


class Loaded(BaseModel):
    """It is in memory."""

    name: str
    load: bool = True
    state: str = "READY"


class Unloaded(BaseModel):
    """It has left memory."""

    name: str
    unload: bool = True
    state: str = "UNAVAILABLE"


def index(raw: RawRequest, models: Models) -> Reply:
    """Answer `POST /v2/repository/index`; over gRPC a repository may be named."""
    if raw.path.get("repository"):
        elsewhere(raw, models)
    body = parse_body(raw.body, IndexBody) if raw.body.strip() else IndexBody()
    lines = [_line(model) for model in models.all() if not body.ready or model.state is ModelState.READY]
    return Reply(dump([line.model_dump() for line in lines]))


def elsewhere(raw: RawRequest, models: Models) -> Reply:
    """Refuse what names a repository."""
    raise NotServed("'repository_name' specification is not supported: there is one repository, without a name")


def load(raw: RawRequest, models: Models) -> Command:
    """Read `POST /v2/repository/models/{model}/load`."""
    name = raw.path["model"]
    parameters = _parameters(raw, ("config",), f"failed to load {name!r}: ")

    def look_again() -> tuple[ModelStatus, ...]:
        try:
            return _meant(raw, models)
        except ModelNotFound as exc:  # in the words that Triton's own sample looks for
            raise ModelNotFound(f"failed to load {name!r}: {exc.message}", **exc.details) from None

    found: tuple[ModelStatus, ...] = ()
    try:
        found = look_again()
    except ModelUnavailable:  # none of its versions is known yet
        pass
    except ModelNotFound:
        stem, _, version = name.partition(":")
        if not version or not models.versions(stem):
            raise
    max_items = read_override(name, parameters["config"], found) if "config" in parameters else None
    return Command(Order(Verb.LOAD, max_items), found, look_again, _said(Loaded(name=name)))


def unload(raw: RawRequest, models: Models) -> Command:
    """Read `POST /v2/repository/models/{model}/unload`."""
    _parameters(raw, ("unload_dependents",))  # there are no ensembles, so no dependents
    return Command(UNLOAD, _meant(raw, models), reply=_said(Unloaded(name=raw.path["model"])))


def _line(model: ModelStatus) -> IndexLine:
    state = _TRITON_STATES.get(model.state, "UNAVAILABLE")
    reason = model.reason or _COLD.get(model.state, "")
    return IndexLine(name=model.name, version=model.version, state=state, reason=reason)


def _said(body: BaseModel) -> Reply:
    return Reply(body.model_dump_json().encode())


def _parameters(raw: RawRequest, known: tuple[str, ...], prefix: str = "") -> dict[str, JsonValue]:
    body = parse_body(raw.body, LoadBody) if raw.body.strip() else LoadBody()
    for name in body.parameters.keys() - set(known):
        field = f"parameters.{name}"
        raise InvalidInput(
            f"{prefix}{field}: is not served; models are configured in serve_config.yaml, not over the API", field=field
        )
    return body.parameters


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
    _admin("POST", f"{_MODEL}/load", summary="Load a model and keep it in memory", control=load, response=Loaded),
    _admin("POST", f"{_MODEL}/unload", summary="Unload a model and stop serving it", control=unload, response=Unloaded),
    *(
        Endpoint(
            "POST",
            f"/v2/repository/{{repository}}/{path}",
            action,
            "Refused: there is one repository, without a name",
            V2,
            answer=elsewhere,
            is_served=False,
        )
        for path, action in (
            ("index", Action.READ),
            ("models/{model}/load", Action.ADMIN),
            ("models/{model}/unload", Action.ADMIN),
        )
    ),
)
