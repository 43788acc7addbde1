"""The endpoint's aliases, shadows and fallbacks against the models of the file: each names one of the same task.

What answers in place of another must be of its task: the client's protocol renders the answer of the one it asked.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias, TypeVar

from deployments.spec import Strict
from deployments.types import Task
from serve_app.traffic_config import Alias, Fallback
from serve_app.validation.applications import ENDPOINT, POOL, App
from serve_app.validation.problems import Place, Problem, nearest

Tasks: TypeAlias = Mapping[str, Task]  # of models, by `name` and `name:version`
Block = TypeVar("Block", bound=Strict)


def check_aliases(apps: Collection[App]) -> Iterator[Problem]:
    """Yield what is wrong with where the endpoint sends requests."""
    specs = [spec for app in apps if app.import_path == POOL for _, spec in app.models]
    tasks = {spec.name: spec.task for spec in specs} | {spec.key: spec.task for spec in specs}
    for app in apps:
        if app.import_path != ENDPOINT or "Ingress" not in app.deployments:
            continue
        place, config = (*app.deployments["Ingress"][0], "user_config"), app.user_config("Ingress")
        aliases = dict(_parsed(Alias, config.get("aliases")))
        fallbacks = dict(_parsed(Fallback, config.get("fallbacks")))
        tasks |= _taken_on_trust(
            apps, [*_named(aliases.values()), *fallbacks, *(t for f in fallbacks.values() for t in f.to)]
        )
        for name, alias in aliases.items():
            yield from _alias((*place, "aliases", name), name, alias, aliases, tasks)
        known = tasks | {name: tasks[alias.models[0]] for name, alias in aliases.items() if alias.models[0] in tasks}
        for name, fallback in fallbacks.items():
            yield from _fallback((*place, "fallbacks", name), name, fallback, known, tasks)


def _taken_on_trust(apps: Collection[App], names: Collection[str]) -> dict[str, Task]:
    """Return the tasks of versions that may well be in folders which this machine does not have."""
    unseen = {name: spec.task for app in apps for name, spec in app.unseen.items()}
    return {name: unseen[model] for name in names if (model := name.partition(":")[0]) in unseen}


def _named(aliases: Collection[Alias]) -> Iterator[str]:
    for alias in aliases:
        yield from alias.targets
        yield from (shadow.model for shadow in alias.shadows)


def _parsed(kind: type[Block], entries: object) -> Iterator[tuple[str, Block]]:
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        try:
            yield str(name), kind.model_validate(entry)
        except ValueError:
            continue  # named by check_model


def _alias(place: Place, name: str, alias: Alias, aliases: Mapping[str, Alias], tasks: Tasks) -> Iterator[Problem]:
    if ":" in name and name in tasks:
        yield Problem(place, "there is a model version of this name, which an alias cannot hide")
    for target in alias.targets:
        if target not in tasks and target in aliases:
            yield Problem(place, "an alias stands for a model, not for another alias", target, nearest(target, tasks))
        else:
            yield from _model(place, target, alias.models[0], tasks)
    for index, shadow in enumerate(alias.shadows):
        yield from _model((*place, "shadows", index, "model"), shadow.model, alias.models[0], tasks)


def _fallback(place: Place, name: str, fallback: Fallback, known: Tasks, tasks: Tasks) -> Iterator[Problem]:
    if name not in known:
        yield Problem(place, "there is no model and no alias of this name", near=nearest(name, known))
    for target in fallback.to:
        yield from _model((*place, "to"), target, name, tasks, known)


def _model(place: Place, target: str, like: str, tasks: Tasks, known: Tasks | None = None) -> Iterator[Problem]:
    """Yield what is wrong with a target that answers in place of `like`, one of `known` (default: a model)."""
    task = (known or tasks).get(like)
    if target not in tasks:
        yield Problem(place, "no pool has this model", target, nearest(target, tasks))
    elif task is not None and tasks[target] is not task:
        yield Problem(place, f"does {tasks[target].value}, but {like} does {task.value}", target)
