"""Where a request goes: alias -> `Plan`, the model that answers, who is asked beside it, who takes over.

The `Router` of `gateway.py`. Pure: what the models are is asked of the registry, chance is passed in. Targets are
chosen by weighted rendezvous hashing: a caller that sticks to something keeps its target while others' weights change,
and a target that grows takes its callers evenly from the rest.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from deployments.errors import ServeError
from deployments.types import InferRequest, ModelStatus, model_key
from serve_app.config import EndpointConfig
from serve_app.context import Context
from serve_app.principals import ANONYMOUS, CLUSTER, NOBODY
from serve_app.traffic_config import Alias, Fallback, Shadow

_RANGE = 2.0**64
_NO_ONE = frozenset((NOBODY.name, ANONYMOUS.name, CLUSTER.name))  # who is not one caller but any


@dataclass(frozen=True, slots=True)
class Plan:
    """The model that answers; `asked` is the name the client used (an alias, or the model's own)."""

    asked: str
    primary: ModelStatus
    shadows: tuple[Shadow, ...] = ()
    fallback: Fallback | None = None


class Names(Protocol):
    """What names stand for now (`registry.py`)."""

    def alias(self, ref: str) -> Alias | None:
        """Return the alias of this name, if it is one."""

    def model(self, ref: str) -> ModelStatus:
        """Return the model of a name that is no alias. Raises ModelNotFound, ModelUnavailable, PoolUnavailable."""


class Routes:
    """Makes plans, by the registry's aliases and the fallbacks in force."""

    def __init__(self, names: Names, draw: Callable[[], float] = random.random) -> None:
        self._names = names
        self._draw = draw
        self._fallbacks: Mapping[str, Fallback] = {}

    def configure(self, config: EndpointConfig) -> None:
        """Take the fallbacks. Aliases are the registry's: they move only once their targets are warm."""
        self._fallbacks = config.fallbacks

    def plan(self, request: InferRequest, context: Context) -> Plan:
        """Return who answers; sets `context.arm` where an alias chose.

        Raises:
            ModelNotFound, ModelUnavailable, PoolUnavailable: as the registry says.
        """
        asked = request.model if request.version is None else model_key(request.model, request.version)
        alias = self._names.alias(asked)
        if alias is None:
            model = self._names.model(asked)
            return Plan(asked, model, fallback=self._fallback(asked, model))
        arms = self._arms(alias)
        key = _sticky(alias, request, context) or self._draw().hex()
        is_whole = len(arms) == len(alias.targets)
        arm = choose(alias.targets if is_whole else {name: alias.targets[name] for name in arms}, asked, key)
        if len(alias.targets) > 1:
            context.arm = context.headers["x-arm"] = arm
        shadows = tuple(shadow for shadow in alias.shadows if self._draw() < shadow.share)
        return Plan(asked, arms[arm], shadows, self._fallback(asked, arms[arm]))

    def _arms(self, alias: Alias) -> dict[str, ModelStatus]:
        """Return the targets that can serve; where none can, those that are known, and they say why."""
        known: dict[str, ModelStatus] = {}
        first: ServeError | None = None
        is_down = False  # one at least
        for target in alias.models:
            try:
                known[target] = model = self._names.model(target)
            except ServeError as exc:
                first = first or exc
            else:
                is_down = is_down or not model.is_servable
        if not known and first is not None:
            raise first
        servable = {target: model for target, model in known.items() if model.is_servable} if is_down else known
        return servable or known

    def _fallback(self, asked: str, model: ModelStatus) -> Fallback | None:
        if not self._fallbacks:
            return None
        get = self._fallbacks.get
        return get(asked) or get(model.key) or get(model.name)


def choose(weights: Mapping[str, float], salt: str, key: str) -> str:
    """Return the target of a key: each gets its weight's share of all keys; `salt` makes aliases independent."""
    if len(weights) == 1:
        return next(iter(weights))
    return max(weights, key=lambda target: (_score(weights[target], f"{salt}\0{target}\0{key}"), target))


def _score(weight: float, text: str) -> float:
    uniform = (int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") + 0.5) / _RANGE
    return -weight / math.log(uniform) if uniform < 1.0 else math.inf


def _sticky(alias: Alias, request: InferRequest, context: Context) -> str:
    """Return what keeps this caller on its target; empty where there is nothing."""
    match alias.sticky:
        case None:
            return ""
        case "key":  # a token's own id changes with every renewal: whom it names does not
            principal = context.principal
            return principal.credential or ("" if principal.name in _NO_ONE else principal.name)
        case "user":
            return request.user
        case header:
            return context.metadata.get(header.partition(":")[2], "")
