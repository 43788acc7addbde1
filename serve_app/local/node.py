"""Starts and stops the one Ray node of a local cluster.

`start` makes `ray start --block` the leader of a session of its own; `stop` ends that session and nothing else
(`ray stop` would end every cluster of the machine). Called by `commands`, the live tests and the benchmarks.

    absent ──start──▶ starting ──dashboard answers──▶ up ──stop──▶ absent
                          └────── Ray dies ──▶ LocalFailure, absent
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from serve_app.local import dashboard
from serve_app.local.cluster import LOOPBACK, Cluster, Options
from serve_app.local.errors import LocalFailure
from serve_app.local.folders import digest, private_folder, run_folder
from serve_app.local.haproxy import write_wrapper
from serve_app.local.ports import Port, claim_block
from serve_app.local.processes import Process, belonging, end, holds_file, is_alive, leader_of

_START_TIMEOUT_S = 90.0
_RAY_ENDS = ((signal.SIGTERM, 30.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
_HAPROXY_ENDS = ((signal.SIGUSR1, 2.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0))


def start(state_dir: Path, options: Options | None = None) -> Cluster:
    """Start Ray and wait until its dashboard answers; leftovers of a crashed run are ended first.

    Raises:
        LocalFailure: Ray died or did not answer in time; nothing is left running then.
    """
    options = options or Options()
    state_dir = private_folder(state_dir.absolute())
    if left := stop(state_dir):
        raise LocalFailure(f"processes of an earlier run won't end: {_pids(left)}")
    base, claim = claim_block(int(digest(state_dir), 16))
    try:
        cluster = Cluster(
            state_dir=state_dir,
            base=base,
            http_port=options.http_port or base + Port.HTTP,
            grpc_port=options.grpc_port or base + Port.GRPC,
            throughput=options.throughput,
        )
        _prepare_folders(cluster)
        cluster = replace(cluster, leader=leader_of(_spawn(cluster, options, claim)))
    finally:
        os.close(claim)
    cluster.save()
    try:
        dashboard.wait_until_up(cluster, _START_TIMEOUT_S)
    except BaseException:
        stop(state_dir)
        raise
    return cluster


def running(state_dir: Path) -> Cluster | None:
    """Return the cluster that runs from this state folder, if one does."""
    cluster = Cluster.load(state_dir.absolute())
    return cluster if cluster is not None and cluster.leader is not None and is_alive(cluster.leader) else None


def processes(state_dir: Path) -> list[Process]:
    """Return every process of the cluster of this state folder, HAProxy included, even after a crash."""
    state_dir = state_dir.absolute()
    cluster = Cluster.load(state_dir)
    return belonging(str(state_dir), cluster.leader if cluster else None)


def stop(state_dir: Path) -> list[Process]:
    """End the cluster of this state folder, Ray first, then HAProxy; return what would not go (nothing, normally)."""
    state_dir = state_dir.absolute()
    haproxy_dir = run_folder(state_dir) / "h"

    def is_haproxy(process: Process) -> bool:
        return holds_file(process, haproxy_dir, "haproxy.cfg")

    def leader() -> list[Process]:
        cluster = Cluster.load(state_dir)
        pid = cluster.leader.pid if cluster and cluster.leader and is_alive(cluster.leader) else None
        return [one for one in processes(state_dir) if one.pid == pid]

    def ray() -> list[Process]:
        return [one for one in processes(state_dir) if not is_haproxy(one)]

    def haproxy() -> list[Process]:
        return [one for one in processes(state_dir) if is_haproxy(one)]

    # The leader ends its children in order; told all at once, the raylet would restart what it misses.
    end(leader, _RAY_ENDS[:1])
    end(ray, _RAY_ENDS[1:])
    end(haproxy, _HAPROXY_ENDS)
    left = processes(state_dir)
    if not left and (cluster := Cluster.load(state_dir)) is not None:
        cluster.forget()
    return left


def discard(state_dir: Path) -> None:
    """Remove the files of a stopped cluster, logs included."""
    shutil.rmtree(run_folder(state_dir.absolute()), ignore_errors=True)
    shutil.rmtree(state_dir, ignore_errors=True)


def _prepare_folders(cluster: Cluster) -> None:
    shutil.rmtree(private_folder(cluster.run_dir))
    private_folder(cluster.run_dir).joinpath("ray").mkdir()
    token = os.open(cluster.token_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(token, "w") as file:
        file.write(secrets.token_hex(32))
    write_wrapper(cluster.haproxy)
    cluster.logs.unlink(missing_ok=True)
    cluster.logs.symlink_to(cluster.run_dir / "ray" / "session_latest" / "logs")


def _spawn(cluster: Cluster, options: Options, claim: int) -> int:
    with cluster.start_log.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  our own arguments
            _command(cluster, options),
            env=cluster.server_env(options),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(claim,),
        )
    return process.pid


def _command(cluster: Cluster, options: Options) -> list[str]:
    values = {
        "port": cluster.port(Port.GCS),
        "node-ip-address": LOOPBACK,
        "temp-dir": cluster.run_dir / "ray",
        "num-cpus": options.num_cpus,
        "object-store-memory": options.object_store_bytes,
        "include-dashboard": "true",
        "dashboard-host": LOOPBACK,
        "dashboard-port": cluster.port(Port.DASHBOARD),
        "dashboard-agent-listen-port": cluster.port(Port.AGENT_HTTP),
        "dashboard-agent-grpc-port": cluster.port(Port.AGENT_GRPC),
        "node-manager-port": cluster.port(Port.NODE_MANAGER),
        "object-manager-port": cluster.port(Port.OBJECT_MANAGER),
        "runtime-env-agent-port": cluster.port(Port.RUNTIME_ENV_AGENT),
        "ray-client-server-port": cluster.port(Port.RAY_CLIENT),
        "metrics-export-port": cluster.port(Port.METRICS_EXPORT),
        "min-worker-port": cluster.port(Port.WORKERS),
        "max-worker-port": cluster.port(Port.WORKERS_END),
    }
    options_ = [f"--{name}={value}" for name, value in values.items()]
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        *options_,
    ]


def _pids(left: list[Process]) -> str:
    return ", ".join(str(one.pid) for one in left)
