"""Is this `serve_config.yaml` right? The whole file: Serve's fields, ours, how they hang together, the files they name.

Called by `model-endpoint validate`, by `serve_app.local` before it deploys, and by the tests of the manifests. Serve
itself drops unknown keys silently, and finds most wrong values only once replicas start.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.validation.aliases import check_aliases
from serve_app.validation.applications import check_apps, is_guarded, read_apps
from serve_app.validation.capacity import check_capacity
from serve_app.validation.document import Document, parse, read
from serve_app.validation.problems import Problem
from serve_app.validation.serve_part import check_host, check_serve, check_shape, message_limit_bytes
from serve_app.validation.versions import check_versions


@dataclass(frozen=True, slots=True)
class Scope:
    """What to check beyond the text.

    `reads_files` looks for the models' files on this machine, `hashes_files` compares their digests (seconds per GB),
    `environ` is what is known of the Ray processes'.
    """

    reads_files: bool = True
    hashes_files: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """Printable lines: errors forbid a deploy, warnings do not."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def check_file(path: Path, *, hash_files: bool = False) -> list[str]:
    """Return what forbids deploying this file, a line each; none if it may be deployed."""
    return list(check(path, Scope(hashes_files=hash_files)).errors)


def check(path: Path, scope: Scope | None = None) -> Report:
    """Check a config file. Never raises for what the file holds."""
    return _report(str(path), read(path), scope or Scope())


def check_text(text: str, name: str, scope: Scope | None = None) -> Report:
    """Check a config given as text, such as the one inside a Kubernetes manifest; `name` begins each line."""
    return _report(name, parse(text), scope or Scope())


def _report(name: str, document: Document, scope: Scope) -> Report:
    problems = list(document.problems)
    if document.data is not None:
        problems += _problems(document.data, scope)
    lines = [(problem.is_warning, problem.render(name, document.lines)) for problem in problems]
    return Report(
        errors=tuple(line for is_warning, line in lines if not is_warning),
        warnings=tuple(line for is_warning, line in lines if is_warning),
    )


def _problems(data: Mapping[str, Any], scope: Scope) -> Iterator[Problem]:
    if shape := check_shape(data):
        yield from shape
        return
    yield from check_serve(data)
    apps = read_apps(data)
    yield from check_host(data, is_guarded=any(is_guarded(app) for app in apps))
    yield from check_apps(apps)
    yield from check_aliases(apps)
    yield from check_versions(apps)
    limit = message_limit_bytes(data, scope.environ)
    yield from check_capacity(apps, limit, reads_files=scope.reads_files, hashes_files=scope.hashes_files)
