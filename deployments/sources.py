"""A model entry's `source` to files on this machine: folder, installed package, Hugging Face hub, any fsspec URL.

Called by `deployments.loader` in a thread (everything here blocks) and by `serve_app.validation`, which reads local
sources only. Downloads are completed in a folder of their own and then renamed, so that nobody ever sees half of one.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath

import fsspec
import orjson
from huggingface_hub import snapshot_download

from deployments.engines import convert_gguf
from deployments.engines.base import unavailable
from deployments.spec import Format, ModelSpec, Source
from deployments.weights import GGUF, SAFETENSORS

FORMATS: Mapping[str, Format] = {  # by suffix: what else may hold weights, and can run code when it is read
    ".bin": "pickle",
    ".pth": "pickle",
    ".ckpt": "pickle",
    ".pkl": "pickle",
    ".jit": "torchscript",
    ".ts": "torchscript",
    ".pt": "torchscript",
    ".pt2": "torch_export",
}
_NEVER = ("*.py", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot")  # on the hub beside the weights, and never read here


def fetch(spec: ModelSpec, cache_dir: Path) -> Path:
    """Return the folder (or file) with the model's files, downloading what is not here yet, digests checked.

    Raises:
        ModelUnavailable: not there, not reachable, or not the files that were pinned.
    """
    source = spec.source
    if source.hub is not None:
        path = _from_hub(spec, source.hub, cache_dir / "hub")
    elif source.url is not None:
        path = _from_url(spec, source.url, cache_dir / "url")
    else:
        path = _local(spec)
    _check_digests(spec, path)
    # GGUF holds numbers and strings, no code; it is converted to safetensors before it is used.
    return _converted(spec, path, cache_dir / "gguf") if path.suffix == GGUF else path


def local_path(source: Source) -> Path | None:
    """Return where a local source's files should be, whether they are there or not; None if not found or not local."""
    if source.package is None:
        return Path(source.path).expanduser() if source.path else None
    # NOTE: PathFinder a part at a time, not importlib.util.find_spec, which imports the parents of a dotted name.
    folders: list[str] | None = None
    for part in source.package.split("."):
        found = PathFinder.find_spec(part, folders)
        folders = list(found.submodule_search_locations or ()) if found else []
        if not folders:
            return None
    return Path((folders or [""])[0], source.path or "")


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold weights: safetensors where there are any, else what else looks like weights."""
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.is_file())
    safe = [file for file in files if file.suffix == SAFETENSORS] or [path] * (path.suffix == GGUF)
    return safe or [file for file in files if file.suffix in FORMATS]


def sha256_of(file: Path) -> str:
    """Return a file's digest; remembered until the file changes."""
    stat = file.stat()
    return _digest(file, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _digest(file: Path, size: int, mtime_ns: int, inode: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _local(spec: ModelSpec) -> Path:
    path = local_path(spec.source)
    if path is None:
        raise unavailable(spec, f"package {spec.source.package!r} is not installed on this machine")
    if not path.exists():
        raise unavailable(spec, f"there is no {path}")
    return path


def _check_digests(spec: ModelSpec, path: Path) -> None:
    folder = path.parent if path.is_file() else path
    for name, expected in spec.source.sha256.items():
        file = folder / name
        if not file.is_file():
            raise unavailable(spec, f"{name} is pinned by sha256, but there is no such file in {folder}")
        if (found := sha256_of(file)) != expected:
            raise unavailable(spec, f"{file} has digest {found}; pinned is {expected}")


def _converted(spec: ModelSpec, file: Path, cache_dir: Path) -> Path:
    """Return the transformers folder made of a GGUF file, making it the first time."""
    folder = cache_dir / sha256_of(file)[:32]
    if not folder.is_dir():
        try:
            convert_gguf(file, folder)
        except ImportError as exc:
            raise unavailable(spec, f"{file.name}: reading GGUF needs the packages gguf and accelerate") from exc
        except Exception as exc:
            raise unavailable(spec, f"{file.name} cannot be converted: {_line(exc)}") from exc
    return folder


def _refused(allow: tuple[Format, ...]) -> list[str]:
    """Return glob patterns of files that are not even downloaded."""
    return [*_NEVER, *(f"*{suffix}" for suffix, kind in FORMATS.items() if kind not in allow)]


def _from_hub(spec: ModelSpec, repository: str, cache_dir: Path) -> Path:
    try:
        folder = snapshot_download(
            repository, revision=spec.source.revision, cache_dir=cache_dir, ignore_patterns=_refused(spec.allow)
        )
    except Exception as exc:
        raise unavailable(spec, f"hub repository {repository!r}: {_line(exc)}") from exc
    return Path(folder)


def _from_url(spec: ModelSpec, url: str, cache_dir: Path) -> Path:
    """Return the local copy of what is behind an fsspec URL; kept by its digests where pinned, else by its listing."""
    try:
        fs, root = fsspec.core.url_to_fs(url)
        # A pinned copy can be used while the store is down; another one is only as good as the store's word.
        pinned = dict(sorted(spec.source.sha256.items()))
        files = {} if pinned else _listing(fs, root)
        key = orjson.dumps([url, sorted(spec.allow), pinned, files], default=str)
        folder = cache_dir / hashlib.sha256(key).hexdigest()[:32]
        if not folder.is_dir():
            _download(fs, files or _listing(fs, root), folder, _refused(spec.allow))
    except Exception as exc:
        raise unavailable(spec, f"url {_shown(url)!r}: {_line(exc)}") from exc
    entries = list(folder.iterdir())
    is_one_file = len(entries) == 1 and entries[0].name == PurePosixPath(root).name and entries[0].is_file()
    return entries[0] if is_one_file else folder


def _listing(fs: fsspec.AbstractFileSystem, root: str) -> dict[str, list[str]]:
    """Return the remote path and the change mark of every file, by name relative to `root`."""
    root = root.rstrip("/")
    if fs.isfile(root):
        return {PurePosixPath(root).name: [root, str(fs.ukey(root))]}
    files = {path.removeprefix(root).lstrip("/"): [path, str(fs.ukey(path))] for path in sorted(fs.find(root))}
    if not files:
        raise FileNotFoundError("there is nothing there")
    return files


def _download(fs: fsspec.AbstractFileSystem, files: Mapping[str, list[str]], folder: Path, refused: list[str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="part-", ignore_cleanup_errors=True) as part:
        for name, (remote, _) in files.items():
            if ".." in PurePosixPath(name).parts or any(PurePosixPath(name).match(pattern) for pattern in refused):
                continue
            target = Path(part, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(remote, str(target))
        Path(part).chmod(0o755)
        try:
            Path(part).rename(folder)
        except OSError:
            if not folder.is_dir():  # else another replica of this machine was faster
                raise
        else:
            Path(part).mkdir()  # for TemporaryDirectory to remove


def _line(exc: Exception) -> str:
    text = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {text[0]}" if text else type(exc).__name__


def _shown(url: str) -> str:
    """Return a URL without user, password and query, where secrets stand."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"
