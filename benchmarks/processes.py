"""A side's processes: their CPU seconds by role, and stopping them still while another side is measured. Linux: /proc.

Which processes belong to a side is found as `serve_app.local` does it: by session and by environment mark.
"""

import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from serve_app.local.processes import Process

Find = Callable[[], Iterable[Process]]
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(processes: Iterable[Process]) -> dict[str, float]:
    """Return user and system seconds so far by role; threads are included, children are processes of their own."""
    total: dict[str, float] = defaultdict(float)
    for process in processes:
        try:
            stat = Path(f"/proc/{process.pid}/stat").read_text()
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()
        total[role(process)] += (int(fields[11]) + int(fields[12])) * _TICK_S
    return dict(total)


def role(process: Process) -> str:
    """Name what a process is for: `haproxy`, `ingress`, `pool`, or `other` (Ray's own, a peer's)."""
    command = " ".join(process.args)
    for name, mark in _ROLES.items():
        if mark in command:
            return name
    return "other"


_ROLES: Mapping[str, str] = {
    "haproxy": "haproxy.cfg",
    "ingress": ":Ingress",
    "catalog": ":Catalog",
    "pool": ":Pool",
    "proxy": "ProxyActor",
    "controller": "ServeController",
}


def freeze(find: Find) -> None:
    """Stop every process where it stands."""
    _send(find, signal.SIGSTOP)


def thaw(find: Find) -> None:
    """Let them run on."""
    _send(find, signal.SIGCONT)


def _send(find: Find, sign: signal.Signals) -> None:
    for process in find():
        try:
            os.kill(process.pid, sign)
        except ProcessLookupError:
            continue
