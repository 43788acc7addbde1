"""Imports point one way, heavy libraries stay in their rooms, and files stay readable (ARCHITECTURE.md)."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("serve_app", "deployments")
MAX_LINES = 260

# Which files may import what; everything else may not.
ROOMS = {
    "ray": (
        "serve_app/app.py",
        "serve_app/ingress.py",
        "serve_app/handles.py",
        "serve_app/client.py",
        "serve_app/short_way.py",
        "serve_app/validation/serve_part.py",  # Serve's own schema
        "deployments/app.py",
        "deployments/catalog.py",
        "deployments/gcs_store.py",
        "deployments/pool.py",
        "deployments/router.py",
        "deployments/autoscaling.py",
    ),
    "torch": ("deployments/engines/*.py",),
    "transformers": ("deployments/engines/*.py",),
    "tokenizers": ("deployments/engines/*.py",),
    "starlette": (
        "serve_app/front.py",
        "serve_app/short_way.py",
        "serve_app/http.py",
        "serve_app/streaming.py",
        "serve_app/middleware.py",
        "serve_app/cors.py",
        "serve_app/ingress.py",
    ),
    "serve_app": ("serve_app/*.py",),
}


def sources() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted(ROOT.joinpath(package).rglob("*.py"))]
    return [path for path in found if "_pb2" not in path.name]


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the top-level package of every import, and whether it runs when the file is imported."""
    tree = ast.parse(path.read_text())
    inside = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").partition(".")[0], id(node) not in inside


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    here = str(path.relative_to(ROOT))
    for package, _ in imported(path):
        rooms = ROOMS.get(package)
        assert rooms is None or any(fnmatch(here, room) for room in rooms), f"{here} imports {package}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_what_it_is_and_fits_two_screens(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no module docstring"


def test_each_import_of_torch_waits_until_a_model_is_loaded() -> None:
    lazy = ROOT / "deployments" / "engines" / "__init__.py"
    assert {package for package, is_eager in imported(lazy) if is_eager}.isdisjoint({"torch", "transformers"})
