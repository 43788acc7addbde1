"""Finds and ends the processes of one cluster, and no others: by session and by environment mark, never by name.

Ray and HAProxy stay in the session of the `ray start` we made: setproctitle overwrites a process's arguments and its
environment, but not its session. Whatever left the session still carries the mark. Called by `node`. Linux only: /proc.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "MODEL_ENDPOINT_CLUSTER"


@dataclass(frozen=True, slots=True)
class Process:
    """One line of `ps`; `started` is in clock ticks since boot, and with the pid names a process for ever."""

    pid: int
    session: int
    started: int
    args: tuple[str, ...]
    mark: str


@dataclass(frozen=True, slots=True)
class Leader:
    """The `ray start` process we made, leader of its session; `boot` tells one uptime of the machine from another."""

    pid: int
    started: int
    boot: str


def boot_id() -> str:
    """Return the name of this boot: pids and ticks of another mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def leader_of(pid: int) -> Leader:
    """Describe a child we have just started. Raises ProcessLookupError if it is gone."""
    process = _read(pid)
    if process is None:
        raise ProcessLookupError(pid)
    return Leader(pid, process.started, boot_id())


def is_alive(leader: Leader) -> bool:
    """Return whether this very process still runs."""
    process = _read(leader.pid)
    return process is not None and process.started == leader.started and leader.boot == boot_id()


def belonging(mark: str, leader: Leader | None) -> list[Process]:
    """Return every living process of the cluster that has this mark and this leader."""
    everything = [process for process in map(_read, _pids()) if process is not None]
    session = _session(everything, leader)
    return [one for one in everything if one.pid != os.getpid() and (one.mark == mark or one.session == session)]


def holds_file(process: Process, folder: Path, name: str) -> bool:
    """Return whether the command line has an argument that is a file called `name` somewhere under `folder`."""
    return any(arg.startswith(f"{folder}/") and arg.endswith(f"/{name}") for arg in process.args)


def end(find: Callable[[], Iterable[Process]], steps: Iterable[tuple[signal.Signals, float]]) -> None:
    """Send each signal in turn to what `find` still finds, and give it that many seconds to go."""
    for sign, patience_s in steps:
        deadline = time.monotonic() + patience_s
        for process in find():
            _send(process, sign)
        while any(find()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        else:
            return


def _send(process: Process, sign: signal.Signals) -> None:
    current = _read(process.pid)
    if current is None or current.started != process.started:
        return
    try:
        os.kill(process.pid, sign)
    except ProcessLookupError:
        return


def _session(everything: Iterable[Process], leader: Leader | None) -> int | None:
    """Return the session to look for; none if its number now belongs to somebody else."""
    if leader is None or leader.boot != boot_id():
        return None
    taken = any(one.pid == leader.pid and one.started != leader.started for one in everything)
    return None if taken else leader.pid


def _pids() -> Iterable[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _read(pid: int) -> Process | None:
    """Return the process, or none if it is gone, a zombie, the kernel's or another user's."""
    folder = Path(f"/proc/{pid}")
    try:
        # The name in parentheses may hold anything, spaces and parentheses too.
        fields = folder.joinpath("stat").read_text().rpartition(")")[2].split()
        environ = folder.joinpath("environ").read_bytes().split(b"\0")
        args = folder.joinpath("cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    wanted = f"{MARK}=".encode()
    mark = next((entry.removeprefix(wanted) for entry in environ if entry.startswith(wanted)), b"")
    return Process(pid, int(fields[3]), int(fields[19]), tuple(map(os.fsdecode, args)), os.fsdecode(mark))
