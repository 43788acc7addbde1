"""Names that stand for a model version, and move warm-then-flip: the new version is in memory before the name moves.

The configuration says what each name is *meant* to stand for; what it stands for *now* changes only once that is in
memory: whether it can be loaded is known then, and not before. Only what cannot answer at all is left for a version
that still has to load. Until then the ingress has the target warmed. Moving back is the same step, and takes effect at
once while the old version is still in memory. An ingress replica that has just started begins where the others' record
(`standing.py`) says the names stand. Pure; owned by `registry.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Generic, TypeVar

Target = TypeVar("Target")


class Rank(IntEnum):
    """How well a target can answer."""

    NOT = 0
    COLD = 1  # after a load
    WARM = 2


class Aliases(Generic[Target]):
    """What names are meant to stand for, and what they stand for now."""

    def __init__(self, keys_of: Callable[[Target], Sequence[str]]) -> None:
        self._keys_of = keys_of
        self._meant: dict[str, Target] = {}
        self._current: dict[str, Target] = {}
        self.remembered: Mapping[str, Target] = {}  # what names stood for elsewhere, for those that are new here

    def configure(self, meant: Mapping[str, Target], first: Mapping[str, Target] | None = None) -> None:
        """Say what the names are meant to stand for.

        A new name stands for what is remembered of it, else for its `first`, else at once for what it is meant to.
        """
        self._meant = dict(meant)
        begin = {**meant, **(first or {}), **self.remembered}
        self._current = {name: self._current.get(name, begin[name]) for name in meant}

    def settle(self, rank: Callable[[str], Rank | None]) -> None:
        """Move every name whose target is warm, or answers where what it stands for cannot.

        `rank` judges a model key; None is not known yet: only a warm target takes over from such, and none moves to it.
        """
        for name, target in self._meant.items():
            new = self._rank(target, rank)
            if new is Rank.WARM or (new is Rank.COLD and self._rank(self._current[name], rank) is Rank.NOT):
                self._current[name] = target

    def get(self, name: str) -> Target | None:
        """Return what a name stands for now."""
        return self._current.get(name)

    @property
    def current(self) -> Mapping[str, Target]:
        """What every name stands for now."""
        return self._current

    def moving(self) -> dict[str, tuple[Target, Target]]:
        """Return the names that have not moved yet: what they stand for, and what they are meant to."""
        pairs = {name: (self._current[name], target) for name, target in self._meant.items()}
        return {name: (old, new) for name, (old, new) in pairs.items() if old != new}

    def _rank(self, target: Target, rank: Callable[[str], Rank | None]) -> Rank | None:
        ranks = [rank(key) for key in self._keys_of(target)]
        return None if None in ranks else min((one for one in ranks if one is not None), default=Rank.NOT)
