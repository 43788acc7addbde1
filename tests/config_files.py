"""The default config, and copies of it with one thing changed, for tests of what reads config files."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from serve_app.validation import Scope, check

Change: TypeAlias = tuple[tuple[str | int, ...], object]
# By name: what is changed in the default file, and the line that must be said of it.
Table: TypeAlias = dict[str, tuple[list[Change], str]]

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "serve_config.yaml"
GONE = object()

# Where things stand in the default file.
INGRESS = ("applications", 0, "deployments", 0)
POOL = ("applications", 1, "deployments", 1)
SHARED = ("applications", 2, "deployments", 1)
MINILM = (*POOL, "user_config", "models", 0)
CASSETTE = (*SHARED, "user_config", "models", 0)
SRE = (*SHARED, "user_config", "models", 1)
RERANK = (*SHARED, "user_config", "models", 2)
VOICE = (*SHARED, "user_config", "models", 3)


def default() -> dict[str, Any]:
    """Return the default config as data."""
    data: dict[str, Any] = yaml.safe_load(DEFAULT.read_text())
    return data


def changed(*changes: Change) -> dict[str, Any]:
    """Return the default config with the values at some places replaced, or removed where the value is GONE."""
    data = copy.deepcopy(default())
    for place, value in changes:
        at: Any = data
        for part in place[:-1]:
            at = at[part]
        if value is GONE:
            del at[place[-1]]
        elif isinstance(at, list) and place[-1] == len(at):
            at.append(value)
        else:
            at[place[-1]] = value
    return data


def places(data: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield every place of a config, keys and list entries, from the outside in."""
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield (*at, key)
        yield from places(value, (*at, key))


def write(folder: Path, data: object) -> Path:
    """Write a config and return where."""
    path = folder / "serve_config.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return path


def lines_of(folder: Path, data: object, scope: Scope | None = None) -> list[str]:
    """Return what is wrong, without the file's name and line number."""
    path = write(folder, data)
    errors = check(path, scope).errors
    assert all(line.startswith(str(path)) for line in errors)
    return [line.removeprefix(str(path)).lstrip(":0123456789").removeprefix(" ") for line in errors]
