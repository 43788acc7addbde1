"""Who asks, and what they may do: principals, their scopes, and the one rule that compares the two.

Made by `auth.py`, carried by `context.py`, asked by `gateway.py`. Knows no key, no token, no protocol.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from serve_app.protocols.types import Action

ALL = "*"


@dataclass(frozen=True, slots=True)
class Scope:
    """Actions, and the models they are granted for; patterns as in file names, over `name` and `name:version`."""

    actions: frozenset[Action]
    models: tuple[str, ...] = (ALL,)

    def allows(self, action: Action, names: Collection[str]) -> bool:
        """Return whether an action is granted for a model by any of its names; without names, for any model at all."""
        if action not in self.actions:
            return False
        return not names or any(fnmatchcase(name, glob) for glob in self.models for name in names)


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who may ask: `name` is whose work it is, `credential` the public id of the key or token they showed."""

    name: str
    credential: str = ""
    scopes: tuple[Scope, ...] = ()
    priority: int = 0
    # Answers by (action, names): a principal lives as long as its key is cached, and asks the same few things again.
    _known: dict[tuple[Action, tuple[str, ...]], bool] = field(default_factory=dict, compare=False, repr=False)

    def may(self, action: Action, *names: str) -> bool:
        """Return whether the action is granted for a model known by these names (none: for any model)."""
        known = self._known.get((action, names))
        if known is None:
            known = any(scope.allows(action, names) for scope in self.scopes)
            if len(self._known) < _MAX_KNOWN:
                self._known[action, names] = known
        return known

    def may_all(self, action: Action) -> bool:
        """Return whether the action is granted for every model."""
        for scope in self.scopes:  # noqa: SIM110 - asked of every request
            if action in scope.actions and ALL in scope.models:
                return True
        return False


_MAX_KNOWN = 4096
_EVERYTHING = (Scope(frozenset(Action)),)
NOBODY = Principal("")  # not authenticated yet: may do nothing
ANONYMOUS = Principal("anonymous", scopes=_EVERYTHING)  # where no authentication is configured
CLUSTER = Principal("cluster", scopes=_EVERYTHING)  # holders of a handle: code inside the Ray cluster
