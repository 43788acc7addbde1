"""`deployments.sources`: every kind of source to files on disk, each fault with its reason."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from deployments.errors import ModelUnavailable
from deployments.sources import fetch, local_path, weight_files
from deployments.spec import ModelSpec, Source

WEIGHTS = b"weights" * 100
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
REVISION = "0" * 40


def spec(allow: tuple[str, ...] = (), **source: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": "m", "task": "feature-extraction", "source": source, "allow": allow})


def reason(caught: pytest.ExceptionInfo[ModelUnavailable]) -> str:
    return str(caught.value.details["reason"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.joinpath("1_Pooling").mkdir(parents=True)
    folder.joinpath("model.safetensors").write_bytes(WEIGHTS)
    folder.joinpath("config.json").write_text("{}")
    folder.joinpath("1_Pooling", "config.json").write_text("{}")
    folder.joinpath("pytorch_model.bin").write_bytes(b"pickle")
    return folder


def test_a_folder_is_used_where_it_is(folder: Path, tmp_path: Path) -> None:
    assert fetch(spec(path=str(folder)), tmp_path) == folder
    with pytest.raises(ModelUnavailable) as caught:
        fetch(spec(path=str(tmp_path / "nothing")), tmp_path)
    assert "there is no" in reason(caught)


def test_the_home_folder_may_be_written_as_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert local_path(Source(path="~/model")) == folder


def test_a_packages_files_are_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "some_weights" / "inner"
    inner.mkdir(parents=True)
    for package in (inner, inner.parent):
        package.joinpath("__init__.py").write_text("raise SystemExit('imported')")
    inner.joinpath("model.safetensors").write_bytes(WEIGHTS)
    monkeypatch.syspath_prepend(tmp_path)
    assert fetch(spec(package="some_weights.inner"), tmp_path) == inner
    assert fetch(spec(package="some_weights", path="inner/model.safetensors"), tmp_path).read_bytes() == WEIGHTS
    with pytest.raises(ModelUnavailable, match="'no_such_weights' is not installed"):
        fetch(spec(package="no_such_weights"), tmp_path)


def test_pinned_files_must_be_there_and_unchanged(folder: Path, tmp_path: Path) -> None:
    assert fetch(spec(path=str(folder), sha256={"model.safetensors": DIGEST}), tmp_path) == folder
    with pytest.raises(ModelUnavailable, match="no such file"):
        fetch(spec(path=str(folder), sha256={"other.safetensors": DIGEST}), tmp_path)
    folder.joinpath("model.safetensors").write_bytes(b"tampered")
    with pytest.raises(ModelUnavailable, match="pinned is"):
        fetch(spec(path=str(folder), sha256={"model.safetensors": DIGEST}), tmp_path)


def test_safetensors_are_the_weights_where_there_are_any(folder: Path) -> None:
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]
    folder.joinpath("model.safetensors").unlink()
    assert [file.name for file in weight_files(folder)] == ["pytorch_model.bin"]


def test_a_url_is_copied_once_without_what_may_run_code(folder: Path, tmp_path: Path) -> None:
    entry = spec(url=f"file://{folder}")
    first = fetch(entry, tmp_path / "cache")
    assert first.joinpath("model.safetensors").read_bytes() == WEIGHTS
    assert first.joinpath("1_Pooling", "config.json").is_file()
    assert not first.joinpath("pytorch_model.bin").exists()
    assert fetch(entry, tmp_path / "cache") == first
    with_pickle = fetch(spec(allow=("pickle",), url=f"file://{folder}"), tmp_path / "cache")
    assert with_pickle.joinpath("pytorch_model.bin").is_file()


def test_a_changed_url_is_copied_anew(folder: Path, tmp_path: Path) -> None:
    first = fetch(spec(url=f"file://{folder}"), tmp_path / "cache")
    folder.joinpath("model.safetensors").write_bytes(b"newer")
    second = fetch(spec(url=f"file://{folder}"), tmp_path / "cache")
    assert first != second
    assert second.joinpath("model.safetensors").read_bytes() == b"newer"


def test_a_pinned_copy_serves_while_its_store_is_down(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/m/model.safetensors", WEIGHTS)
    entry = spec(url="memory://bucket/m", sha256={"model.safetensors": DIGEST})
    first = fetch(entry, tmp_path)
    memory.rm("/bucket", recursive=True)
    assert fetch(entry, tmp_path) == first
    with pytest.raises(ModelUnavailable, match="url 'memory://bucket/m'"):
        fetch(spec(url="memory://bucket/m"), tmp_path)


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/full/m/a.json", b"{}")
    memory.pipe("/full/m/model.safetensors", WEIGHTS)
    whole = type(memory).get_file

    def disk_full(self: Any, remote: str, local: str, **options: Any) -> None:
        if remote.endswith("safetensors"):
            raise OSError(28, "No space left on device")
        whole(self, remote, local, **options)

    monkeypatch.setattr(type(memory), "get_file", disk_full)
    with pytest.raises(ModelUnavailable, match="No space left on device"):
        fetch(spec(url="memory://full/m"), tmp_path)
    assert list(tmp_path.joinpath("url").iterdir()) == []
    monkeypatch.undo()
    assert fetch(spec(url="memory://full/m"), tmp_path).joinpath("model.safetensors").is_file()


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_one_file_over_http(web: str, tmp_path: Path) -> None:
    entry = spec(url=f"{web}/model.safetensors", sha256={"model.safetensors": DIGEST})
    path = fetch(entry, tmp_path)
    assert (path.name, path.read_bytes()) == ("model.safetensors", WEIGHTS)


def test_secrets_in_a_url_are_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        fetch(spec(url="nosuch://user:hunter2@host/path?token=hunter3"), tmp_path)
    assert "host/path" in reason(caught)
    assert "hunter" not in caught.value.message + str(caught.value.details)


def test_a_hub_repository_that_cannot_be_reached_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match="hub repository 'org/model'"):
        fetch(spec(hub="org/model", revision=REVISION), tmp_path)


def test_a_hub_snapshot_that_was_fetched_before_is_used_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    snapshot.joinpath("model.safetensors").write_bytes(WEIGHTS)
    assert fetch(spec(hub="org/model", revision=REVISION), tmp_path) == snapshot
