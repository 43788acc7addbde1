"""`up`, `down` and `env`: what the Makefile and the CLI call. Prints; returns exit codes; never raises LocalFailure.

A cluster that already runs is kept, and only the config is deployed again.
"""

import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from serve_app.local import dashboard, node
from serve_app.local.cluster import LOOPBACK, Cluster, Options
from serve_app.local.errors import LocalFailure
from serve_app.local.folders import private_folder
from serve_app.local.ports import is_free, listener
from serve_app.validation import check_file

_DEFAULT_HTTP_PORT, _DEFAULT_GRPC_PORT = 8000, 9000


def state_folder() -> Path:
    """Return where `make up` keeps its cluster: in the checkout, or in the current folder if there is none."""
    checkout = Path(__file__).resolve().parents[2]
    root = checkout if checkout.joinpath("pyproject.toml").is_file() else Path.cwd()
    return root / ".state" / "up"


def up(
    config: Path,
    *,
    port: int | None = None,
    grpc_port: int | None = None,
    timeout_s: float = 600.0,
    state_dir: Path | None = None,
) -> int:
    """Start the cluster unless it runs, deploy `config`, and wait until it is ready."""
    state_dir = (state_dir or state_folder()).absolute()
    began = time.monotonic()
    try:
        parsed = _read_config(config)
        with _alone(state_dir):
            cluster = _up(parsed, Options(http_port=port, grpc_port=grpc_port), timeout_s, state_dir)
    except LocalFailure as exc:
        _print(f"up: {exc}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        _print("up: interrupted", sys.stderr)
        return 130
    _print(f"ready after {time.monotonic() - began:.0f} s\n\n{_epilogue(cluster, parsed)}")
    return 0


def down(*, state_dir: Path | None = None) -> int:
    """Stop the cluster and check that none of its processes is left. Idempotent."""
    state_dir = (state_dir or state_folder()).absolute()
    try:
        with _alone(state_dir):
            before = len(node.processes(state_dir))
            left = node.stop(state_dir)
    except LocalFailure as exc:
        _print(f"down: {exc}", sys.stderr)
        return 1
    if left:
        _print(f"down: still running: {', '.join(f'{one.pid} ({one.args[0]})' for one in left)}", sys.stderr)
        return 1
    _print(f"stopped {before} processes, none left" if before else "nothing is running")
    return 0


def deployed(*, state_dir: Path | None = None) -> dict[str, Any] | None:
    """Return the applications that the running cluster was told to run, None where nothing runs."""
    cluster = node.running((state_dir or state_folder()).absolute())
    if cluster is None:
        return None
    found = [one.get("deployed_app_config") for one in dashboard.applications(cluster).values()]
    return {"applications": [config for config in found if config]}


def environment(*, state_dir: Path | None = None) -> int:
    """Print the `export` lines that make another shell's `serve` and Ray jobs reach the running cluster."""
    cluster = node.running((state_dir or state_folder()).absolute())
    if cluster is None:
        _print("env: nothing is running; start it with: make up", sys.stderr)
        return 1
    _print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in cluster.driver_env().items()))
    return 0


def _up(config: Mapping[str, Any], wanted: Options, timeout_s: float, state_dir: Path) -> Cluster:
    deadline = time.monotonic() + timeout_s
    if (running := node.running(state_dir)) is not None:
        _check_unchanged(running, config, wanted)
        _say(f"already running on {running.http_url}: deploying the config only")
        _deploy(running, config, deadline)
        return running
    options = Options(http_port=wanted.http_port or _port(config), grpc_port=wanted.grpc_port or _grpc_port(config))
    if left := node.stop(state_dir):
        raise LocalFailure(f"processes of an earlier run won't end: {', '.join(str(one.pid) for one in left)}")
    _check_ports(config, options)
    _say("starting Ray")
    cluster = node.start(state_dir, options)
    try:
        _deploy(cluster, config, deadline)
    except BaseException:
        _say("stopping again")
        node.stop(state_dir)
        raise
    return cluster


def _deploy(cluster: Cluster, config: Mapping[str, Any], deadline: float) -> None:
    dashboard.deploy(cluster, config, _say, deadline - time.monotonic())
    dashboard.wait_ready(cluster, _say, deadline - time.monotonic())


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise LocalFailure(f"no such file: {path}")
    if problems := check_file(path):
        raise LocalFailure("\n  ".join([f"{path} is not a valid config:", *problems]))
    parsed: dict[str, Any] = yaml.safe_load(path.read_text())
    return parsed


def _check_unchanged(running: Cluster, config: Mapping[str, Any], wanted: Options) -> None:
    """Refuse a port that a running Serve can't take; a port given at the start stays in force."""
    if wanted.http_port not in (None, running.http_port):
        raise LocalFailure(f"already running on port {running.http_port}; to move it: make down, then make up PORT=...")
    if wanted.http_port is None and _port(config) != running.http_port:
        _say(f"note: the config says port {_port(config)}; {running.http_port} stays until make down")


def _check_ports(config: Mapping[str, Any], options: Options) -> None:
    host = (config.get("http_options") or {}).get("host", LOOPBACK)
    _check_port(host, options.http_port or _DEFAULT_HTTP_PORT, "PORT")
    if (config.get("grpc_options") or {}).get("grpc_servicer_functions"):
        _check_port("0.0.0.0", options.grpc_port or _DEFAULT_GRPC_PORT, "GRPC_PORT")  # noqa: S104  as HAProxy will


def _check_port(host: str, port: int, variable: str) -> None:
    if not is_free(host, port):
        pid = listener(port)
        owner = f"process {pid} ({_command(pid)})" if pid else "a process of another user"
        raise LocalFailure(f"port {port} is taken by {owner}; stop it, or choose another: make up {variable}=...")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"


def _port(config: Mapping[str, Any]) -> int:
    return int((config.get("http_options") or {}).get("port", _DEFAULT_HTTP_PORT))


def _grpc_port(config: Mapping[str, Any]) -> int:
    return int((config.get("grpc_options") or {}).get("port", _DEFAULT_GRPC_PORT))


def _epilogue(cluster: Cluster, config: Mapping[str, Any]) -> str:
    body = json.dumps({"model": first_model(config), "inputs": ["a text to try"]})
    return (
        f"try:   curl -s {cluster.http_url}/v1/predict -H 'content-type: application/json' -d '{body}'\n"
        f"docs:  {cluster.http_url}/docs\n"
        f"logs:  {cluster.logs / 'serve'}\n"
        f"stop:  make down"
    )


def first_model(config: Mapping[str, Any]) -> str | None:
    """Return the name of the first model that a pool of this config offers."""
    for application in config.get("applications", []):
        for deployment in application.get("deployments", []):
            for model in (deployment.get("user_config") or {}).get("models", []):
                return str(model["name"])
    return None


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """Keep a second `up` or `down` of the same state folder out while this one works."""
    with private_folder(state_dir).joinpath("lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalFailure(f"another make up or make down is at work in {state_dir}") from None
        yield


def _say(line: str) -> None:
    _print(f"  {line}")


def _print(text: str, stream: Any = None) -> None:
    (stream or sys.stdout).write(f"{text}{os.linesep}")
    (stream or sys.stdout).flush()
