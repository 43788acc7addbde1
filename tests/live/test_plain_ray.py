"""On a Ray cluster as Ray starts it, without the throughput flags, deployed to by Serve's own command line."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from echo_pool import body, config, echo
from live_cluster import HERE, Live

from serve_app.local import dashboard, node
from serve_app.local.cluster import Options

DRIVER = """
import asyncio, ray
from serve_app.client import connect
ray.init(log_to_driver=False)

@ray.remote(num_cpus=0)
def sync():
    return connect().infer("echo", {"x": NUMBERS}).result(timeout_s=30).outputs["y"].tolist()

@ray.remote(num_cpus=0)
def unsync():
    async def ask():
        return (await connect().infer("echo", {"x": NUMBERS})).outputs["y"].tolist()
    return asyncio.run(ask())

print(ray.get([sync.remote(), unsync.remote()]))
""".replace("NUMBERS", "__import__('numpy').array([1, 2], dtype='float32')")

pytestmark = pytest.mark.timeout(240)


def test_serve_deploy_and_python_handles_without_the_flags(tmp_path: Path) -> None:
    state_dir = tmp_path / "plain"
    plain = node.start(state_dir, Options(throughput=False, pythonpath=(str(HERE), str(HERE.parent))))
    try:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(dashboard.with_ports(config(echo(pinned=True)), plain)))
        live = Live(plain)
        deployed = subprocess.run(
            [Path(sys.executable).with_name("serve"), "deploy", str(file)],
            env=live.outer_env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert deployed.returncode == 0, deployed.stderr
        dashboard.wait_ready(plain, timeout_s=120)
        answer = httpx.post(f"{plain.http_url}/v2/models/echo/infer", json=body(1, 2), timeout=30)
        assert answer.json()["outputs"][0]["data"] == [1, 2]
        flags = httpx.get(f"{plain.http_url}/status", timeout=10).json()["flags"]
        assert flags["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
        assert "[[1.0, 2.0], [1.0, 2.0]]" in live.run_driver(DRIVER)
    finally:
        left = node.stop(state_dir)
    assert left == []
    node.discard(state_dir)
