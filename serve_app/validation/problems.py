"""What is wrong with a config file: one `Problem` a fault, one printable line a problem.

Used by every file of this package; knows nothing of what is checked.
"""

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

Place: TypeAlias = tuple[str | int, ...]  # keys and list indexes from the top of the file


class _Absent:
    """There is no value to show."""


ABSENT: Final = _Absent()


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: where, which rule it breaks, the value found, and the nearest right spelling."""

    place: Place
    rule: str
    value: object = ABSENT
    near: str = ""
    line: int | None = None  # only where the place has no line of its own
    is_warning: bool = False

    def render(self, file: str, lines: Mapping[Place, int]) -> str:
        """Return the problem as one line: `file:line: place: rule (value 'x'); did you mean 'y'?`."""
        line = self.line or _line(self.place, lines)
        parts = [f"{file}:{line}" if line else file]
        if self.place:
            parts.append(dotted(self.place))
        text = ": ".join([*parts, " ".join(self.rule.split())])
        if isinstance(self.value, str | int | float | bool | None):
            text += f" (value {_shown(self.value)})"
        return f"{text}; did you mean {self.near!r}?" if self.near else text


def nearest(word: object, choices: Collection[str]) -> str:
    """Return the choice most like `word`, or "" where none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else ""


def dotted(place: Place) -> str:
    """Return `applications[1].deployments[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _line(place: Place, lines: Mapping[Place, int]) -> int | None:
    """Return the line of a place, or of the innermost one around it: a missing key has none."""
    for end in range(len(place), 0, -1):
        if place[:end] in lines:
            return lines[place[:end]]
    return None


def _shown(value: str | float | bool | None) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    return repr(value if len(value) <= 80 else f"{value[:77]}...")
