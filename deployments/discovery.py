"""Versions of a model found in its folder: a source with `version_folders` is one entry for all versions there are.

Looked at when the configuration is applied and when an operator orders a load, never in between: what is being copied
there is not offered half. Called by `deployments.models`, and by whoever reads a configuration file.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from deployments.sources import local_path
from deployments.spec import NAME, ModelSpec
from deployments.versions import natural

logger = logging.getLogger(__name__)
MAX_VERSIONS = 1000  # folders; more are a mistake


def discovered(models: Iterable[ModelSpec]) -> tuple[list[ModelSpec], dict[str, str]]:
    """Return the entries with a version each, and by `name:*` why a folder's cannot be told."""
    found: list[ModelSpec] = []
    refused: dict[str, str] = {}
    models = list(models)
    listed = {spec.key for spec in models if not spec.source.version_folders}
    for spec in models:
        if not spec.source.version_folders:
            found.append(spec)
            continue
        try:
            found += [one for one in _versions(spec) if one.key not in listed]  # what is listed is meant
        except (OSError, ValueError) as exc:
            refused[all_versions(spec.name)] = f"source: {exc}"
    return found, refused


def all_versions(name: str) -> str:
    """Return what stands for every version of a model where each has a key."""
    return f"{name}:*"


def _versions(spec: ModelSpec) -> Iterator[ModelSpec]:
    folder = local_path(spec.source)
    if folder is None:
        raise ValueError(f"package {spec.source.package!r} is not installed on this machine")
    names = _names(folder)
    if not names:
        raise ValueError(f"{folder} holds no folder whose name could be a version")
    fields = spec.model_dump(exclude_unset=True)
    for name in names:
        source = fields["source"] | {"path": str(PurePosixPath(spec.source.path or "", name)), "version_folders": False}
        yield ModelSpec.model_validate(fields | {"version": name, "source": source})


def _names(folder: Path) -> list[str]:
    names = []
    for count, entry in enumerate(folder.iterdir()):
        if count == MAX_VERSIONS:
            raise ValueError(f"{folder} holds more than {MAX_VERSIONS} entries; one folder a version is meant")
        if re.fullmatch(NAME, entry.name) and entry.is_dir():
            names.append(entry.name)
    return sorted(names, key=natural)
