"""A running cluster as a live test sees it; made by the fixture `cluster` in conftest.py."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.local import dashboard
from serve_app.local.cluster import Cluster

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Live:
    """Where it listens, and what a test does with it."""

    cluster: Cluster

    @property
    def http_url(self) -> str:
        return self.cluster.http_url

    @property
    def address(self) -> str:
        return self.cluster.address

    @property
    def env(self) -> dict[str, str]:
        """What another process must have set to reach this cluster."""
        return self.cluster.driver_env()

    @property
    def outer_env(self) -> dict[str, str]:
        """Return this process's environment with what another process must have set to reach this cluster."""
        return os.environ | self.env | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}

    def deploy(self, config: Mapping[str, Any] | Path, *, timeout_s: float = 300.0, ready: bool = True) -> None:
        """Deploy a config (its ports are replaced by the cluster's) and wait until all its applications run."""
        parsed = yaml.safe_load(config.read_text()) if isinstance(config, Path) else config
        dashboard.deploy(self.cluster, parsed, timeout_s=timeout_s)
        if ready:
            dashboard.wait_ready(self.cluster, timeout_s=timeout_s)

    def applications(self) -> dict[str, Any]:
        """Return what Serve tells of its applications: status, deployments, replicas with their pids."""
        return dashboard.applications(self.cluster)

    def run_driver(self, script: str, *, timeout_s: float = 120.0) -> str:
        """Run Python code that calls `ray.init()` against this cluster, in a process of its own; return its output."""
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=self.outer_env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
