"""What the pools offer, as the ingress last heard it: names, versions, where each model lives, who is ready.

Updated in the background by `ingress.py`, read by `gateway.py` and the codecs (`protocols.types.Models`). A pool that
stops answering keeps its last word: its requests then fail by themselves with 503.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from deployments.errors import ModelNotFound, ModelUnavailable, PoolUnavailable
from deployments.types import ModelState, ModelStatus, PoolStatus, model_key
from deployments.versions import natural
from serve_app.aliases import Aliases, Rank
from serve_app.config import EndpointConfig, PoolRef
from serve_app.lanes import Target
from serve_app.protocols.types import Readiness, shown
from serve_app.standing import Standing
from serve_app.traffic_config import Alias


@dataclass(slots=True)
class _Pool:
    ref: PoolRef
    status: PoolStatus | None = None
    problem: str = "not heard of yet"


class Registry:
    """All models of all pools."""

    def __init__(self) -> None:
        self.server_name = EndpointConfig().server_name
        self._pools: dict[str, _Pool] = {}
        self._refused: Mapping[str, str] = {}  # of the endpoint's own configuration
        self._versions: dict[str, dict[str, ModelStatus]] = {}  # by name, oldest version first
        self._leaving: dict[str, ModelStatus] = {}  # not offered any more: serve until a name that means them moves
        self._targets: dict[str, Target] = {}
        self.aliases: Aliases[Alias] = Aliases(lambda alias: alias.models)
        self._newest: Aliases[str] = Aliases(lambda target: (target,))  # what a name without a version stands for

    def configure(
        self, pools: Mapping[str, PoolRef], refused: Mapping[str, str], aliases: Mapping[str, Alias] | None = None
    ) -> None:
        """Say which pools and aliases there are; what is known of those that stay is kept.

        Without `aliases` (the configuration was refused) they stay as they are.
        """
        self._pools = {
            name: _Pool(ref, old.status, old.problem) if (old := self._pools.get(name)) else _Pool(ref)
            for name, ref in pools.items()
        }
        self._refused = refused
        if aliases is not None:
            self.aliases.configure(aliases)
        self._index()

    def remember(self, standing: Standing) -> None:
        """Take what names stand for at other ingress replicas; names that are new here begin there."""
        self.aliases.remembered, self._newest.remembered = standing.aliases, standing.newest
        self._index()

    def standing(self) -> Standing:
        """Return what names stand for now, and what those of pools not heard of yet stood for."""
        newest = {**self._newest.remembered, **self._newest.current}
        return Standing(aliases=dict(self.aliases.current), newest=newest)

    def refuse(self, refused: Mapping[str, str]) -> None:
        """Say which entries of the endpoint's own configuration are not in force, and why."""
        self._refused = refused

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the pool applications."""
        return tuple(self._pools)

    def has_silent(self, pool: str) -> bool:
        """Return whether a pool has replicas that did not answer when they were asked last."""
        entry = self._pools.get(pool)
        return entry is not None and entry.status is not None and (entry.problem != "" or entry.status.n_silent > 0)

    def update(self, pool: str, status: PoolStatus | None, problem: str = "") -> None:
        """Take a pool's word, or note that it did not answer."""
        entry = self._pools.get(pool)
        if entry is None:
            return  # left the configuration while it was being asked
        if status is None:
            entry.problem = problem
        elif status.n_replicas == 0:
            entry.problem = "it has no replica"
        else:
            last, entry.status, entry.problem = entry.status, status, ""
            if last is None or _told(last) != _told(status):
                self._index()

    def resolve(self, name: str, version: str | None = None) -> ModelStatus:
        """Return the model a request means: an alias's, or without a version its newest one that can serve.

        Raises:
            ModelNotFound: no pool has it.
            ModelUnavailable: it is configured, but its entry was refused.
            PoolUnavailable: not every pool has been heard of, so it cannot be told.
        """
        ref = name if version is None else model_key(name, version)
        alias = self.alias(ref)
        return self.model(ref if alias is None else alias.models[0])

    def alias(self, ref: str) -> Alias | None:
        """Return what a name stands for now, if it is an alias; one never hides a real version."""
        name, _, version = ref.partition(":")
        return None if version in self._versions.get(name, {}) else self.aliases.get(ref)

    def model(self, ref: str) -> ModelStatus:
        """Return the model `name:version`, or the newest `name` that can serve; no aliases. Raises as `resolve`."""
        model = self._find_ref(ref)
        if model is None:
            name, _, version = ref.partition(":")
            raise self._missing(name, version or None)
        return model

    def moving(self) -> tuple[tuple[Target, int], ...]:
        """Return the models to be warmed, because a name is about to move to them, and on how many replicas."""
        moving = [*self._newest.moving().values()]
        for stands, meant in self.aliases.moving().values():
            moving += [(stands.models[0], target) for target in meant.models]
        n_copies: dict[str, int] = {}
        for before, after in moving:
            model, old = self._find_ref(after), self._find_ref(before)
            if model is not None and model.is_servable:
                n_copies[model.key] = max(n_copies.get(model.key, 1), old.n_ready if old else 0)
        return tuple((self._targets[key], n) for key, n in n_copies.items())

    def target(self, model: ModelStatus) -> Target:
        """Return where a resolved model's requests go."""
        return self._targets[model.key]

    def all(self) -> tuple[ModelStatus, ...]:
        """Return every model version, by name, oldest version first."""
        return tuple(model for name in sorted(self._versions) for model in self._versions[name].values())

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a model, oldest first. Raises ModelNotFound."""
        if name not in self._versions:
            raise self._missing(name, None)
        return tuple(self._versions[name])

    def readiness(self) -> Readiness:
        """Return whether every pinned model of every required pool is ready, and every refused entry."""
        waiting: dict[str, str] = {}
        rejected = dict(self._refused)
        for name, pool in self._pools.items():
            if pool.status is not None:
                rejected.update({f"{name}/{key}": reason for key, reason in pool.status.rejected.items()})
            if pool.ref.required:
                waiting.update(_waiting(name, pool))
        is_ready = not waiting
        for alias, (old, new) in self.aliases.moving().items():
            why = ", ".join(f"{target} {self._stand(target)}" for target in new.models)
            waiting[f"alias {alias}"] = f"stands for {old}, is going to stand for {new}: {why}"
        return Readiness(
            is_ready, waiting, rejected, {name: str(alias) for name, alias in self.aliases.current.items()}
        )

    def _stand(self, ref: str) -> str:
        model = self._find_ref(ref)
        return f"is {model.state.value} {model.reason}".rstrip() if model else "does not exist"

    def _find(self, name: str, version: str | None) -> ModelStatus | None:
        if version is None:
            _, _, version = (self._newest.get(name) or "").partition(":")
        return self._versions.get(name, {}).get(version) or self._leaving.get(model_key(name, version))

    def _find_ref(self, ref: str) -> ModelStatus | None:
        name, _, version = ref.partition(":")
        return self._find(name, version or None)

    def _missing(self, name: str, version: str | None) -> Exception:
        name, version = shown(name), version and shown(version)
        for pool in self._pools.values():
            reason = _refusal(pool.status.rejected if pool.status else {}, name, version)
            if reason is not None:
                return ModelUnavailable(f"model {name!r} is configured wrongly: {reason}", reason=reason)
        silent = sorted(p for p, pool in self._pools.items() if pool.status is None)
        if silent:
            return PoolUnavailable(
                f"model {name!r} cannot be looked up yet: no answer from pool {', '.join(silent)}", retry_after_s=1.0
            )
        if name in self._versions:
            known = ", ".join(self._versions[name])
            return ModelNotFound(f"unknown model version: {name!r} has no version {version!r}; versions: {known}")
        known = ", ".join(sorted(self._versions)) or "none"
        return ModelNotFound(f"unknown model: {name!r} is not found; models: {known}")

    def _index(self) -> None:
        versions: dict[str, dict[str, ModelStatus]] = {}
        self._leaving = {}
        targets: dict[str, Target] = {}
        for pool_name, pool in self._pools.items():
            for model in pool.status.models if pool.status else ():
                if model.is_leaving:
                    self._leaving[model.key] = model
                else:
                    versions.setdefault(model.name, {})[model.version] = model
                n_replicas = pool.status.n_replicas + pool.status.n_silent if pool.status else 1
                held, load_s = (0, 0.0) if model.state is ModelState.READY else (model.max_held, model.load_s)
                targets[model.key] = Target(pool_name, model.key, n_replicas, model.pinned, held, load_s)
        self._versions = {name: dict(sorted(v.items(), key=lambda i: natural(i[0]))) for name, v in versions.items()}
        self._targets = targets
        warm = {name: key for name, found in self._versions.items() if (key := _newest_warm(found))}
        self._newest.configure({name: _newest(found) for name, found in self._versions.items()}, warm)
        self._newest.settle(self._rank)
        self.aliases.settle(self._rank)
        if self._pools and self._hears_all:
            self.aliases.remembered, self._newest.remembered = {}, {}

    @property
    def _hears_all(self) -> bool:
        return all(pool.status is not None for pool in self._pools.values())

    def _rank(self, ref: str) -> Rank | None:
        model = self._find_ref(ref)
        if model is None:
            return Rank.NOT if self._hears_all else None
        if not model.is_servable:
            return Rank.NOT
        return Rank.WARM if model.state is ModelState.READY else Rank.COLD


def _told(status: PoolStatus) -> tuple[object, ...]:
    return status.models, status.n_replicas, status.n_silent


def _newest(versions: Mapping[str, ModelStatus]) -> str:
    """Return the key of the newest version that can serve, else of the newest."""
    servable = [model for model in versions.values() if model.is_servable]
    return (servable or list(versions.values()))[-1].key


def _newest_warm(versions: Mapping[str, ModelStatus]) -> str | None:
    return next((model.key for model in reversed(list(versions.values())) if model.state is ModelState.READY), None)


def _waiting(name: str, pool: _Pool) -> dict[str, str]:
    if pool.status is None or pool.problem:
        return {name: pool.problem}
    return {
        model.key: f"{model.state.value}: {model.reason}" if model.reason else model.state.value
        for model in pool.status.models
        if model.pinned and not model.is_leaving and model.state is not ModelState.READY
    }


def _refusal(rejected: Mapping[str, str], name: str, version: str | None) -> str | None:
    if version is not None:
        return rejected.get(model_key(name, version))
    return next((reason for key, reason in rejected.items() if key.startswith(f"{name}:")), None)
