"""The endpoint and the pools in the file: their arguments, their user_config, and how they hang together."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from deployments.discovery import discovered
from deployments.engines import ENGINES, engine_name, missing_bases
from deployments.spec import ModelSpec, PoolArgs, PoolConfig
from serve_app.config import EndpointArgs, EndpointConfig
from serve_app.validation.models import check_model
from serve_app.validation.problems import ABSENT, Place, Problem, nearest

ENDPOINT = "serve_app.app:build"
POOL = "deployments.app:build"


@dataclass(frozen=True, slots=True)
class Kind:
    """One of our applications: which deployments it has, and the models of its `args` and their `user_config`."""

    args: type[BaseModel]
    deployments: Mapping[str, type[BaseModel] | None]


KINDS = {
    ENDPOINT: Kind(EndpointArgs, {"Ingress": EndpointConfig}),
    POOL: Kind(PoolArgs, {"Catalog": None, "Pool": PoolConfig}),
}


@dataclass(slots=True)
class App:
    """One application of the file, with what in it is right."""

    place: Place
    name: str
    import_path: str
    data: Mapping[str, Any]
    deployments: dict[str, tuple[Place, Mapping[str, Any]]] = field(default_factory=dict)
    models: list[tuple[Place, ModelSpec]] = field(default_factory=list)

    @property
    def unseen(self) -> dict[str, ModelSpec]:
        """Models, by name, whose versions are found in a folder that this machine does not have."""
        return {spec.name: spec for _, spec in self.models if spec.source.version_folders}

    def args(self) -> PoolArgs | EndpointArgs | None:
        """Return the application's arguments, None where they are wrong."""
        try:
            return KINDS[self.import_path].args.model_validate(self.data.get("args") or {})  # type: ignore[return-value]
        except ValueError:
            return None

    def user_config(self, deployment: str) -> Mapping[str, Any]:
        """Return a deployment's user_config, empty where there is none."""
        _, data = self.deployments.get(deployment, ((), {}))
        config = data.get("user_config")
        return config if isinstance(config, dict) else {}


def read_apps(data: Mapping[str, Any]) -> list[App]:
    """Return the applications of a file whose shape has been checked."""
    apps = []
    for index, entry in enumerate(data["applications"]):
        app = App(("applications", index), str(entry.get("name")), str(entry.get("import_path")), entry)
        for number, deployment in enumerate(entry.get("deployments", [])):
            place = (*app.place, "deployments", number)
            app.deployments.setdefault(str(deployment.get("name")), (place, deployment))
        app.models = list(_right_models(app))
        apps.append(app)
    return apps


def is_guarded(app: App) -> bool:
    """Return whether this is the endpoint, with authentication or the word that it needs none."""
    if app.import_path != ENDPOINT:
        return False
    try:
        auth = EndpointConfig.model_validate(app.user_config("Ingress")).auth
    except ValueError:
        return False  # named by check_model
    return auth.is_configured or auth.allow_anonymous


def check_apps(apps: Collection[App]) -> Iterator[Problem]:
    """Yield what is wrong inside each application, then between them."""
    for app in apps:
        if app.import_path not in KINDS:
            yield from _foreign(app)
            continue
        kind = KINDS[app.import_path]
        yield from check_model(kind.args, app.data.get("args") or {}, (*app.place, "args"))
        yield from _deployments(app, kind)
        for place, spec in dict(app.models).items():  # one of an entry's versions speaks for all
            yield from _engine(place, spec)
    yield from _routes(apps)
    yield from _references(apps)
    yield from _unique_models(apps)


def _foreign(app: App) -> Iterator[Problem]:
    place, rule = (*app.place, "import_path"), f"is neither {ENDPOINT} nor {POOL}"
    if nearest(app.import_path.partition(".")[0], {"serve_app", "deployments"}):
        yield Problem(place, rule, app.import_path, nearest(app.import_path, KINDS))
    else:
        rule += ": an application of its own, of which only Serve's fields are checked"
        yield Problem(place, rule, app.import_path, is_warning=True)


def _deployments(app: App, kind: Kind) -> Iterator[Problem]:
    names: set[str] = set()
    for number, deployment in enumerate(app.data.get("deployments", [])):
        place = (*app.place, "deployments", number)
        name = str(deployment.get("name"))
        if name in names:
            yield Problem((*place, "name"), "this deployment is listed twice", name)
        names.add(name)
        if name not in kind.deployments:
            rule = f"no such deployment in {app.import_path}; there are {', '.join(kind.deployments)}"
            yield Problem((*place, "name"), rule, name, nearest(name, kind.deployments))
            continue
        model, config = kind.deployments[name], deployment.get("user_config")
        if model is not None:
            yield from check_model(model, {} if config is None else config, (*place, "user_config"))
        elif config is not None:
            yield Problem((*place, "user_config"), f"{name} takes none", config if config != {} else ABSENT)
    for name, model in kind.deployments.items():
        if model is not None and name not in names:
            rule = f"deployment {name} is not listed, so nothing is configured"
            yield Problem((*app.place, "deployments"), rule)


def _engine(place: Place, spec: ModelSpec) -> Iterator[Problem]:
    try:
        row = ENGINES[engine_name(spec)]
    except ValueError as exc:
        near = "" if spec.engine in ENGINES else nearest(spec.engine, ENGINES)
        yield Problem((*place, "engine"), str(exc).removeprefix("engine: "), spec.engine, near)
        return
    yield from check_model(row.options, dict(spec.options), (*place, "options"))


def _routes(apps: Collection[App]) -> Iterator[Problem]:
    endpoints = [app for app in apps if app.import_path == ENDPOINT]
    if len(endpoints) != 1:
        yield Problem(
            ("applications",), f"expected one application with import_path {ENDPOINT}, found {len(endpoints)}"
        )
    for app in apps:
        prefix = app.data.get("route_prefix", "/")  # Serve's default
        place = (*app.place, "route_prefix")
        if app.import_path == ENDPOINT and prefix is None:
            yield Problem(place, "the endpoint needs a route, or nobody reaches it; write /", None)
        elif app.import_path == ENDPOINT and not str(prefix).startswith("/"):
            yield Problem(place, "a route begins with /", prefix)
        elif app.import_path != ENDPOINT and prefix is not None:
            yield Problem(place, "only the endpoint has a route; write `route_prefix: null`", prefix)


def _references(apps: Collection[App]) -> Iterator[Problem]:
    pools = {app.name: app for app in apps if app.import_path == POOL}
    named: set[str] = set()
    for app in apps:
        if app.import_path != ENDPOINT or "Ingress" not in app.deployments:
            continue
        place = (*app.deployments["Ingress"][0], "user_config", "pools")
        references = app.user_config("Ingress").get("pools")
        for name in references if isinstance(references, dict) else {}:
            named.add(str(name))
            if name not in pools:
                rule = f"no pool application has this name; there are {', '.join(pools) or 'none'}"
                yield Problem((*place, str(name)), rule, near=nearest(name, pools))
        for name in sorted(pools.keys() - named):
            rule = f"the endpoint does not name this pool, so nobody reaches its models; add it to {place[-1]}"
            yield Problem((*pools[name].place, "name"), rule, name)


def _unique_models(apps: Collection[App]) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    for app in apps:
        bases = missing_bases(spec for _, spec in app.models)
        for place, spec in app.models:
            owner = owners.setdefault(spec.key, app.name)
            if reason := bases.get(spec.key):
                yield Problem((*place, "base"), reason.removeprefix("base: "))
            if owner != app.name:
                yield Problem(
                    (*place, "name"), f"{spec.key} is in pool {owner} already; give it another version", spec.name
                )


def _right_models(app: App) -> Iterator[tuple[Place, ModelSpec]]:
    if app.import_path != POOL or "Pool" not in app.deployments:
        return
    entries = app.user_config("Pool").get("models")
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        try:
            spec = ModelSpec.model_validate(entry)
        except ValueError:
            continue  # named by check_model
        place = (*app.deployments["Pool"][0], "user_config", "models", index)
        versions, _ = discovered([spec])  # those of this machine; the entry itself where it has none
        yield from ((place, version) for version in versions or [spec])
