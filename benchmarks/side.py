"""What a side is, and the two ways to run one: a peer's server process, or a local Ray cluster of its own.

A side is started once, then frozen and thawed around its measurements. Concrete ones stand in `sides`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from benchmarks import processes, workload
from benchmarks.wire import Wire
from serve_app.local import Options, dashboard, node
from serve_app.local.processes import MARK, Leader, Process, belonging, end, leader_of

STATE = Path(__file__).resolve().parents[1] / ".state" / "bench"
ROOT = STATE.parents[1]
LOOPBACK = "127.0.0.1"
_ENDS = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))


class Side(Protocol):
    """One way to serve the model."""

    name: str
    title: str
    wire: Wire
    may_freeze: bool  # not if it takes its own standstill for a death

    def start(self) -> None:
        """Start it, without waiting for its model. Raises RuntimeError."""

    def find(self) -> Sequence[Process]:
        """Return all its processes."""

    def stop(self) -> None:
        """End it; idempotent."""

    @property
    def port(self) -> int:
        """Where it listens, on loopback."""


@dataclass
class Peer:
    """A server that is one command; `venv` names an environment under `.state/bench/venvs`, none ours."""

    name: str
    title: str
    wire: Wire
    command: Sequence[str]
    venv: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    may_freeze: bool = True
    _leader: Leader | None = None

    def start(self) -> None:
        self.port = free_port()
        folder = STATE / "peers" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        python = STATE / "venvs" / self.venv / "bin" / "python" if self.venv else Path(sys.executable)
        if not python.exists():
            raise RuntimeError(f"{python} is missing: python -m benchmarks venvs")
        values = {
            "port": self.port,
            "python": python,
            "bin": python.parent,
            "root": ROOT,
            "model": workload.model_path(),
        }
        with (folder / "log").open("wb") as log:
            started = subprocess.Popen(
                [part.format_map(values) for part in self.command],
                env=self._environment(python),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )
        self._leader = leader_of(started.pid)

    def find(self) -> Sequence[Process]:
        return belonging(self._mark, self._leader)

    def stop(self) -> None:
        processes.thaw(self.find)
        end(self.find, _ENDS)
        with suppress(ChildProcessError):
            if self._leader is not None:
                os.waitpid(self._leader.pid, os.WNOHANG)

    @property
    def _mark(self) -> str:
        return f"bench-{self.name}-{os.getpid()}"

    def _environment(self, python: Path) -> dict[str, str]:
        path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        ports = {f"BENCH_{kind}_PORT": str(free_port()) for kind in ("GRPC", "METRICS")}
        own = {"PATH": path, "PYTHONPATH": str(ROOT), MARK: self._mark, "BENCH_PORT": str(self.port), **ports}
        return dict(os.environ) | own | common_env() | dict(self.env)


@dataclass
class Cluster:
    """A Serve config on a local Ray cluster of its own."""

    name: str
    title: str
    wire: Wire
    config: Callable[[], Mapping[str, Any]]
    throughput: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    may_freeze: bool = True

    def start(self) -> None:
        options = Options(
            throughput=self.throughput,
            pythonpath=(str(ROOT), str(ROOT / "tests")),
            num_cpus=max(4, os.cpu_count() or 1),
            env={**common_env(), **self.env},
        )
        cluster = node.start(self._state_dir, options)
        self.port = cluster.http_port
        self.deploy()

    def deploy(self) -> None:
        """Put the side's config in force."""
        cluster = node.running(self._state_dir)
        assert cluster is not None
        dashboard.deploy(cluster, self.config())
        dashboard.wait_ready(cluster)

    def find(self) -> Sequence[Process]:
        return node.processes(self._state_dir)

    def stop(self) -> None:
        processes.thaw(self.find)
        node.stop(self._state_dir)

    @property
    def _state_dir(self) -> Path:
        return STATE / "clusters" / self.name


def wait_for_answer(side: Side, timeout_s: float = 180.0) -> None:
    """Return when the side gives embeddings. Raises RuntimeError if it does not in time or has died."""
    deadline = time.monotonic() + timeout_s
    last: object = "no answer"
    while time.monotonic() < deadline:
        if not side.find():
            raise RuntimeError(f"{side.name} has ended; see {STATE}/peers/{side.name}/log")
        try:
            ask(side, ["is anyone there?"])
            return
        except (OSError, httpx.HTTPError, ValueError, KeyError, RuntimeError) as exc:
            last = exc
        time.sleep(0.5)
    raise RuntimeError(f"{side.name} does not answer: {last}")


def ask(side: Side, texts: Sequence[str]) -> Any:
    """Return the side's embeddings of `texts`, one row a text. Raises RuntimeError if it answers with an error."""
    url = f"http://{LOOPBACK}:{side.port}{side.wire.path}"
    headers = {"content-type": "application/json"}
    answer = httpx.post(url, content=side.wire.body(texts), headers=headers, timeout=60, trust_env=False)
    if answer.status_code != 200:
        raise RuntimeError(f"{side.name} answered {answer.status_code}: {answer.text[:300]}")
    return side.wire.vectors(answer.content)


def common_env() -> dict[str, str]:
    """Return what every side's processes find in their environment."""
    return {"BENCH_MODEL": str(workload.model_path()), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
