"""The local cluster itself: isolated, on loopback, reachable only with its token, and gone without a trace."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_cluster import HERE, Live

from serve_app.local import dashboard, node
from serve_app.local.cluster import Options
from serve_app.local.errors import LocalFailure
from serve_app.local.processes import holds_file, is_alive

ECHO: dict[str, Any] = {"applications": [{"name": "echo", "route_prefix": "/", "import_path": "echo_app:app"}]}
BROKEN: dict[str, Any] = {"applications": [{"name": "echo", "route_prefix": "/", "import_path": "echo_app:broken"}]}

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def echo(cluster: Live) -> Live:
    cluster.deploy(ECHO)
    return cluster


def test_request_goes_through_haproxy_to_the_replica(echo: Live) -> None:
    answer = httpx.get(f"{echo.http_url}/any/path", timeout=30)
    assert answer.json()["path"] == "/any/path"
    replicas = echo.applications()["echo"]["deployments"]["Echo"]["replicas"]
    assert answer.json()["pid"] in {replica["pid"] for replica in replicas}
    assert haproxies(echo.cluster.state_dir)


def test_driver_in_another_process_reaches_the_cluster_with_its_environment(echo: Live) -> None:
    script = "import ray; ray.init(log_to_driver=False); print(sorted(n['NodeManagerAddress'] for n in ray.nodes()))"
    assert "['127.0.0.1']" in echo.run_driver(script)


def test_request_without_the_token_is_refused(echo: Live) -> None:
    answer = httpx.get(f"{echo.cluster.dashboard_url}/api/serve/applications/", timeout=30)
    assert answer.status_code == 401


def test_token_is_readable_by_its_owner_only(cluster: Live) -> None:
    assert cluster.cluster.token_path.stat().st_mode & 0o077 == 0


def test_failed_deploy_raises_with_serves_message(echo: Live) -> None:
    with pytest.raises(LocalFailure, match="the budget of pool 'shared' is negative"):
        echo.deploy(BROKEN)
    echo.deploy(ECHO)
    assert httpx.get(f"{echo.http_url}/again", timeout=30).is_success


def test_crashed_cluster_is_noticed_and_its_leftovers_are_ended(tmp_path: Path) -> None:
    """Also: two clusters live side by side, and ending one leaves the other alone."""
    state_dir = tmp_path / "second"
    second = node.start(state_dir, Options(pythonpath=(str(HERE),)))
    try:
        dashboard.deploy(second, ECHO)
        dashboard.wait_ready(second)
        assert second.leader is not None
        os.killpg(second.leader.pid, signal.SIGKILL)
        while is_alive(second.leader):
            time.sleep(0.05)
        with pytest.raises(LocalFailure, match="Ray has died"):
            dashboard.check_alive(second)
        assert haproxies(state_dir), "the crash was to leave HAProxy behind"
    finally:
        left = node.stop(state_dir)
    assert left == []
    assert node.processes(state_dir) == []
    node.discard(state_dir)


def test_ending_another_cluster_has_disturbed_nobody(echo: Live) -> None:
    assert httpx.get(f"{echo.http_url}/still/here", timeout=30).is_success
    assert haproxies(echo.cluster.state_dir)


def haproxies(state_dir: Path) -> list[int]:
    folder = node.run_folder(state_dir) / "h"
    return [one.pid for one in node.processes(state_dir) if holds_file(one, folder, "haproxy.cfg")]
