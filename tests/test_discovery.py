"""Versions found in a folder: offered by policy, found at start and by `load`, kept when the folder cannot be read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from config_files import INGRESS, SHARED, changed, lines_of
from hypothesis import given
from hypothesis import strategies as st
from test_models import Case, entry, settle

from deployments import discovery
from deployments.discovery import discovered
from deployments.errors import ModelNotFound, ServeError
from deployments.orders import LOAD, UNLOAD, Order
from deployments.spec import ModelSpec, parse_models
from deployments.types import ModelState, ModelStatus, PoolStatus, Signature, Task
from serve_app.config import PoolRef
from serve_app.plan import plan
from serve_app.pools import PoolControl
from serve_app.protocols.types import RawRequest
from serve_app.protocols.v2_repository import load, unload
from serve_app.registry import Registry


def found_in(folder: Path, name: str = "a", **fields: Any) -> dict[str, Any]:
    return entry(name, source={"path": str(folder), "version_folders": True}, **fields)


def make(folder: Path, *versions: str) -> Path:
    for version in versions:
        (folder / version).mkdir(parents=True)
    return folder


async def test_each_folder_is_a_version_and_nothing_else_is(tmp_path: Path) -> None:
    make(tmp_path, "10", "9", "v1.3", ".hidden", "with space", "config")
    (tmp_path / "README").write_text("no folder")
    case = Case()
    case.apply(found_in(tmp_path), entry("b"))
    assert case.table.rejected == {}
    assert [s.key for s in case.table.statuses()] == ["a:9", "a:10", "a:config", "a:v1.3", "b:1"]
    assert await case.use("a:10") == str(tmp_path / "10")


@pytest.mark.parametrize(
    ("policy", "offered"), [("all", {"1", "2", "10"}), ({"latest": 2}, {"2", "10"}), (["1"], {"1"})]
)
async def test_policies_say_which_of_them_are_offered(tmp_path: Path, policy: Any, offered: set[str]) -> None:
    case = Case()
    case.apply(found_in(make(tmp_path, "1", "2", "10")), versions={"a": policy})
    assert {s.version for s in case.table.statuses()} == offered


async def test_a_version_that_comes_is_found_by_the_next_look_and_the_oldest_drains(tmp_path: Path) -> None:
    case = Case()
    case.apply(found_in(make(tmp_path, "1")), versions={"a": {"latest": 1}}, drain_s=0.0)
    await case.use("a:1")
    make(tmp_path, "2")
    assert set(case.states()) == {"a:1"}, "what is being copied is not offered half"
    case.table.discover()
    assert [(s.key, s.is_leaving) for s in case.table.statuses()] == [("a:1", True), ("a:2", False)]
    await settle()
    assert case.states() == {"a:2": ModelState.UNLOADED}


async def test_a_folder_that_cannot_be_read_leaves_what_was_found_in_force(tmp_path: Path) -> None:
    case = Case()
    case.apply(found_in(make(tmp_path / "a", "1", "2")), drain_s=0.0)
    (tmp_path / "a").rename(tmp_path / "away")
    case.table.discover()
    await settle()
    assert set(case.states()) == {"a:1", "a:2"}
    assert "No such file" in case.table.rejected["a:*"]
    (tmp_path / "away").rename(tmp_path / "a")
    case.table.discover()
    assert case.table.rejected == {}


@pytest.mark.parametrize("make_it", [lambda folder: None, lambda folder: folder.mkdir(), lambda f: f.write_text("x")])
async def test_a_folder_without_versions_is_refused_and_others_serve(tmp_path: Path, make_it: Any) -> None:
    make_it(tmp_path / "a")
    case = Case()
    case.apply(found_in(tmp_path / "a"), entry("b"))
    assert set(case.states()) == {"b:1"}
    assert case.table.rejected["a:*"].startswith("source: ")


async def test_what_is_listed_goes_before_what_is_found(tmp_path: Path) -> None:
    case = Case()
    case.apply(found_in(make(tmp_path, "2", "3")), entry("a", "/listed", version="2"))
    assert set(case.states()) == {"a:2", "a:3"}
    assert await case.use("a:2") == "/listed"


def test_a_folder_of_too_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_VERSIONS", 2)
    spec = ModelSpec.model_validate(found_in(make(tmp_path, "1", "2", "3")))
    assert "more than 2" in discovered([spec])[1]["a:*"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"version": "1"}, "leave it out"),
        ({"source": {"url": "s3://b/m", "version_folders": True}}, "goes with a local path, and not with url"),
        ({"source": {"path": "/m", "version_folders": True, "sha256": {"1/a": "0" * 64}}}, "cannot be pinned"),
    ],
)
def test_a_wrong_entry_says_what_is_wrong(fields: dict[str, Any], word: str) -> None:
    wrong = found_in(Path("/m")) | fields
    assert word in next(iter(parse_models({"models": [wrong]})[1].values()))


@given(st.sets(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True), max_size=6))
def test_entries_found_differ_in_version_and_path_only(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    folder = make(tmp_path_factory.mktemp("a"), *names)
    spec = ModelSpec.model_validate(found_in(folder, timeout_s=3, pinned=True, dtype="bfloat16"))
    found, refused = discovered([spec])
    assert {one.version for one in found} == names
    assert bool(refused) is not bool(names)
    assert all(
        (one.timeout_s, one.pinned, one.dtype, one.source.path) == (3, True, "bfloat16", str(folder / one.version))
        for one in found
    )
    assert len({one.digest for one in found}) == len(found)


def status(*versions: str, **rejected: str) -> PoolStatus:
    models = tuple(
        ModelStatus("a", v, Task.FILL_MASK, Signature((), ()), ModelState.UNLOADED, False, 30.0) for v in versions
    )
    return PoolStatus(models, rejected, 1)


class Handles:
    """A pool that finds versions when it looks."""

    def __init__(self, before: PoolStatus, after: PoolStatus) -> None:
        self.now, self.after = before, after
        self.orders: list[tuple[Order, Sequence[str]]] = []

    async def discover(self, pool: str) -> None:
        self.now = self.after

    async def status(self, pool: str) -> PoolStatus:
        return self.now

    async def order(self, pool: str, order: Order, keys: Sequence[str]) -> None:
        self.orders.append((order, tuple(keys)))


async def commanded(path: str, before: PoolStatus, after: PoolStatus, read: Any = load) -> Handles:
    registry, handles = Registry(), Handles(before, after)
    registry.configure({"p": PoolRef()}, {})
    registry.update("p", before)
    control = PoolControl(registry, handles)  # type: ignore[arg-type]
    await control.command(read(RawRequest({"model": path}), registry))
    return handles


@pytest.mark.parametrize(
    ("path", "before", "ordered"),
    [
        ("a", status("1"), ("a:1", "a:2")),
        ("a:2", status("1"), ("a:2",)),
        ("a:1", status("1"), ("a:1",)),
        ("a", status(**{"a:*": "source: empty"}), ("a:1", "a:2")),
    ],
)
async def test_a_load_looks_for_new_versions_first(path: str, before: PoolStatus, ordered: tuple[str, ...]) -> None:
    handles = await commanded(path, before, status("1", "2"))
    assert handles.orders == [(LOAD, ordered)]


async def test_an_unload_looks_for_none() -> None:
    handles = await commanded("a", status("1"), status("1", "2"), unload)
    assert handles.orders == [(UNLOAD, ("a:1",))]


async def test_a_version_that_is_not_found_either_is_404_and_an_empty_folder_says_why() -> None:
    with pytest.raises(ModelNotFound, match="failed to load 'a:9'"):
        await commanded("a:9", status("1"), status("1", "2"))
    with pytest.raises(ServeError, match="empty"):
        await commanded("a", status(**{"a:*": "source: empty"}), status(**{"a:*": "source: empty"}))


MODELS = (*SHARED, "user_config", "models", 4)


def problems(folder: Path, path: Path, alias: str = "new:2", **versions: Any) -> list[str]:
    added = {"name": "new", "task": "fill-mask", "source": {"path": str(path), "version_folders": True}}
    aliases = ((*INGRESS, "user_config", "aliases"), {"prod": alias})
    return lines_of(folder, changed((MODELS, added), aliases, ((*SHARED, "user_config", "versions"), versions)))


def test_a_config_file_is_checked_against_the_folders_that_are_here(tmp_path: Path) -> None:
    home = make(tmp_path / "m", "1", "2")
    for version in "12":
        (home / version / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert problems(tmp_path, home, new={"latest": 1}) == []
    assert any("no pool has this model" in line for line in problems(tmp_path, home, alias="new:7"))
    assert any("offers no version" in line for line in problems(tmp_path, home, new=["7"]))
    (home / "2" / "model.safetensors").unlink()
    assert any(f"no weights in {home / '2'}" in line for line in problems(tmp_path, home))
    (tmp_path / "empty").mkdir()
    assert any("holds no folder whose name" in line for line in problems(tmp_path, tmp_path / "empty"))
    away = problems(tmp_path, tmp_path / "away", alias="new:7", new=["7"])
    assert len(away) == 1
    assert "there is no" in away[0]


def test_a_plan_counts_the_versions_that_are_here(tmp_path: Path) -> None:
    added = {
        "name": "new",
        "task": "fill-mask",
        "source": {"path": str(make(tmp_path, "1", "2")), "version_folders": True},
    }
    config = changed((MODELS, added))
    assert any(line.split()[:1] == ["new:2"] for line in plan(config, None))
    without = changed()
    assert "shared/Pool: model new:2: added, loaded by its first request" in plan(config, without)
