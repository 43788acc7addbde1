"""The endpoint's aliases against the models of the file: each must stand for one that is there, and hide none."""

from collections.abc import Collection, Iterator, Mapping

from serve_app.validation.applications import ENDPOINT, POOL, App
from serve_app.validation.problems import Place, Problem, nearest


def check_aliases(apps: Collection[App]) -> Iterator[Problem]:
    """Yield what is wrong with the aliases of the endpoint."""
    keys = {spec.key for app in apps if app.import_path == POOL for _, spec in app.models}
    known = keys | {key.partition(":")[0] for key in keys}
    for app in apps:
        aliases = app.user_config("Ingress").get("aliases") if app.import_path == ENDPOINT else None
        if isinstance(aliases, dict):
            place = (*app.deployments["Ingress"][0], "user_config", "aliases")
            yield from _each(place, aliases, keys, known)


def _each(place: Place, aliases: Mapping[str, object], keys: set[str], known: set[str]) -> Iterator[Problem]:
    for alias, target in aliases.items():
        where = (*place, str(alias))
        if alias in keys:
            yield Problem(where, "there is a model version of this name, which an alias cannot hide")
        if isinstance(target, str) and target not in known:
            rule = (
                "an alias stands for a model, not for another alias" if target in aliases else "no pool has this model"
            )
            yield Problem(where, rule, target, nearest(target, known))
