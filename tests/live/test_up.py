"""`up` and `down` as an operator meets them: again on a running endpoint, after a crash, and gone without a trace."""

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.local import commands, dashboard, node
from serve_app.local.cluster import Cluster
from serve_app.local.processes import is_alive

DEFAULT = Path(__file__).resolve().parents[2] / "serve_config.yaml"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write the default config without its pools: the endpoint alone, which starts in seconds."""
    parsed = yaml.safe_load(DEFAULT.read_text())
    (endpoint,) = [one for one in parsed["applications"] if one["import_path"] == "serve_app.app:build"]
    endpoint["deployments"][0]["user_config"] |= {"pools": {}, "aliases": {}}
    path = tmp_path / "endpoint.yaml"
    path.write_text(yaml.safe_dump(parsed | {"applications": [endpoint]}))
    return path


def test_up_again_after_a_crash_and_down(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state_dir, port = tmp_path / "up", free_port()
    try:
        assert commands.up(config, port=port, state_dir=state_dir) == 0
        assert f"curl -s http://127.0.0.1:{port}/" in capsys.readouterr().out
        first = running(state_dir)
        replicas = pids(first)

        assert commands.up(config, state_dir=state_dir) == 0
        assert "already running" in capsys.readouterr().out
        assert (running(state_dir), pids(first)) == (first, replicas)
        assert commands.up(config, port=port + 1, state_dir=state_dir) == 1
        assert "make down" in capsys.readouterr().err

        crash(first)
        assert node.processes(state_dir), "the crash was to leave HAProxy behind"
        assert commands.up(config, port=port, state_dir=state_dir) == 0
        assert running(state_dir).leader != first.leader
        assert httpx.get(f"http://127.0.0.1:{port}/ready", timeout=10).is_success
    finally:
        code = commands.down(state_dir=state_dir)
    assert code == 0
    assert node.processes(state_dir) == []
    assert "none left" in capsys.readouterr().out
    node.discard(state_dir)


def running(state_dir: Path) -> Cluster:
    cluster = node.running(state_dir)
    assert cluster is not None
    return cluster


def pids(cluster: Cluster) -> set[int]:
    deployments: dict[str, Any] = dashboard.applications(cluster)["endpoint"]["deployments"]
    return {replica["pid"] for one in deployments.values() for replica in one["replicas"]}


def crash(cluster: Cluster) -> None:
    """Kill Ray, but not HAProxy, which has a process group of its own."""
    assert cluster.leader is not None
    os.killpg(cluster.leader.pid, signal.SIGKILL)
    while is_alive(cluster.leader):
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
