"""The files of models with local sources, as this machine has them: there, allowed, unchanged, how large.

Sources on the hub or behind a URL are left to the pool, which fetches them.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from deployments.engines import cache_bytes
from deployments.sources import FORMATS, local_path, sha256_of, weight_files
from deployments.spec import ModelSpec, Source
from deployments.weights import expected_bytes
from serve_app.validation.problems import Place, Problem, nearest


def weight_bytes(spec: ModelSpec, device: str = "cpu") -> int | None:
    """Return the bytes that a local model's weights take on a device, None where they cannot be told."""
    path = local_path(spec.source)
    if path is None or not path.exists():
        return None
    n_bytes = expected_bytes(weight_files(path), spec.dtype, device)
    with suppress(ValueError):  # wrong options have a line of their own
        n_bytes += cache_bytes(spec) if n_bytes else 0
    return n_bytes or None


def check_files(place: Place, spec: ModelSpec, *, hashes_files: bool) -> Iterator[Problem]:
    """Yield what is wrong with the files of a local source."""
    source, where = spec.source, (*place, "source")
    if not source.package and not source.path:
        return
    path = local_path(source)
    if path is None:
        yield Problem((*where, "package"), "no such package is installed on this machine", source.package)
    elif source.version_folders and path.exists():
        yield Problem((*where, "path"), f"{path} holds no folder whose name could be a version", source.path)
    elif not path.exists():
        siblings = [entry.name for entry in path.parent.glob("*")]
        near = str(Path(source.path or "").with_name(name)) if (name := nearest(path.name, siblings)) else ""
        yield Problem((*where, "path"), f"there is no {path}", source.path, near)
    else:
        yield from _formats(place, spec, path)
        yield from _digests((*where, "sha256"), source, path, hashes_files=hashes_files)


def _formats(place: Place, spec: ModelSpec, path: Path) -> Iterator[Problem]:
    if spec.engine == "custom" or spec.task == "custom":
        return  # what its files are is its own affair
    files = weight_files(path)
    kinds = {FORMATS[file.suffix] for file in files if file.suffix in FORMATS}
    if not files:
        yield Problem((*place, "source"), f"no weights in {path}: no safetensors file, nor any other known kind")
    elif kinds and kinds.isdisjoint(spec.allow):
        rule = f"{path} holds no safetensors but {files[0].name}, which may run code; if you trust it, write"
        yield Problem((*place, "allow"), f"{rule} `allow: [{', '.join(sorted(kinds))}]`")


def _digests(place: Place, source: Source, path: Path, *, hashes_files: bool) -> Iterator[Problem]:
    folder = path.parent if path.is_file() else path
    for name, expected in source.sha256.items():
        file = folder / name
        if not file.is_file():
            near = nearest(name, [entry.name for entry in folder.glob("*")])
            yield Problem((*place, name), f"there is no such file in {folder}", near=near)
        elif hashes_files and (found := sha256_of(file)) != expected:
            yield Problem((*place, name), f"the file's digest is {found}: it is not the one that was pinned", expected)
