"""Which TCP ports a local cluster takes: one block of its own, so that clusters on a machine never meet.

Called by `node` (claims a block) and `commands` (is the HTTP port free). Linux only: reads `/proc/net/tcp*`.
Blocks lie below the kernel's ephemeral range, so that no outgoing connection can sit on one of their ports.
"""

import fcntl
import os
import socket
from enum import IntEnum
from pathlib import Path

from serve_app.local.errors import LocalFailure
from serve_app.local.folders import private_folder

_FIRST, _LAST, _BLOCK = 12_000, 32_000, 500


class Port(IntEnum):
    """Where in its block a cluster keeps each port."""

    GCS = 0
    DASHBOARD = 1
    AGENT_HTTP = 2
    AGENT_GRPC = 3
    NODE_MANAGER = 4
    OBJECT_MANAGER = 5
    RUNTIME_ENV_AGENT = 6
    RAY_CLIENT = 7
    METRICS_EXPORT = 8
    AUTOSCALER_METRICS = 9
    DASHBOARD_METRICS = 10
    HAPROXY_STATS = 11
    HAPROXY_METRICS = 12
    FALLBACK_HTTP = 13
    FALLBACK_GRPC = 14
    HTTP = 15
    GRPC = 16
    WORKERS = 50  # to 249; Ray takes one a worker process
    WORKERS_END = 249
    REPLICA_HTTP = 250  # to 349; a port rests 150 s after its replica, so rolling updates need many
    REPLICA_HTTP_END = 349
    REPLICA_GRPC = 350
    REPLICA_GRPC_END = 449


def claim_block(wanted: int) -> tuple[int, int]:
    """Take a free block, `wanted` modulo their number first.

    Returns:
        The block's first port, and an open file descriptor that holds the claim: pass it to the process that is to
        own the block, then close it here. The claim ends when its last holder dies.
    """
    folder = private_folder(Path(f"/tmp/mep-ports-{os.getuid()}"))  # noqa: S108  one place for all clones of a user
    bases = range(_FIRST, _LAST, _BLOCK)
    busy = {port for port, _ in _sockets()}
    for step in range(len(bases)):
        base = bases[(wanted + step) % len(bases)]
        lock = os.open(folder / f"{base}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if busy.isdisjoint(range(base, base + _BLOCK)):
            return base, lock
        os.close(lock)
    raise LocalFailure(f"no free block of {_BLOCK} ports between {_FIRST} and {_LAST}: stop some of the local clusters")


def is_free(host: str, port: int) -> bool:
    """Return whether a server could listen on this address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # NOTE: without SO_REUSEPORT, which HAProxy sets: two of them would share a port in silence.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listener(port: int) -> int | None:
    """Return the pid that listens on `port`, if it is one we may look at."""
    inodes = {f"socket:[{inode}]" for at, inode in _sockets(listening=True) if at == port}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(fd) in inodes for fd in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:
            continue
    return None


def _sockets(*, listening: bool = False) -> set[tuple[int, str]]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if not listening or fields[3] == "0A":
                found.add((int(fields[1].rpartition(":")[2], 16), fields[9]))
    return found
