"""One isolated Ray cluster for all live tests, started and stopped by the code that `make up` uses.

Tests talk HTTP to `cluster.http_url`. A test that needs Ray itself gives a script to `cluster.run_driver(...)`, which
runs it in another process: so no test leaves Ray connected, and its flags imported, in the pytest process.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_cluster import HERE, Live

from serve_app.local import dashboard, node
from serve_app.local.cluster import Options

# Serve tells its autoscaler every 10 s how busy replicas are.
_ENV = {"RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.live)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    state_dir = tmp_path_factory.mktemp("cluster")
    running = node.start(
        state_dir, Options(pythonpath=(str(HERE), str(HERE.parent), str(HERE.parents[1] / "examples/triton")), env=_ENV)
    )
    try:
        yield Live(running)
        dashboard.check_alive(running)
    finally:
        left = node.stop(state_dir)
    assert left == []
    node.discard(state_dir)


@pytest.fixture(autouse=True)
def _ray_has_not_died(cluster: Live) -> None:
    """Fail at once, with Ray's last words, instead of letting each test wait for its own timeout."""
    dashboard.check_alive(cluster.cluster)
