"""Where the CPU of one request goes: by process, by thread, and by function while that one holds the GIL.

`python -m benchmarks profile`; needs py-spy. CPU by thread comes from /proc: py-spy takes a waiting thread for a busy
one on some machines; holding the GIL is what Python code on the event loop costs, C++ threads of Ray come on top.
"""

import os
import re
import subprocess
import sys
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import processes
from benchmarks.contestant import Served
from benchmarks.endtoend import texts_of
from benchmarks.measure import Measurement
from benchmarks.report import aligned
from benchmarks.side import LOOPBACK, STATE
from benchmarks.workload import Cell

_WATCHED = ("ingress", "pool")
_SECONDS, _RATE = 8, 250
_TOP = 40
_GATHERED = {"model_endpoint_call_requests": "requests a call", "model_endpoint_batch_items": "texts a batch"}
_PY_SPY = Path(sys.executable).with_name("py-spy")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def profile(served: Served, cell: Cell) -> str:
    """Run `cell` on a started side and return what was found, as text."""
    processes.thaw(served.side.find)
    pids = {processes.role(one): one.pid for one in served.side.find()}
    watched = {role: pids[role] for role in _WATCHED if role in pids}
    before = {role: _threads(pid) for role, pid in watched.items()}
    gathered = _gathered(served.side.port)
    spies = {role: _spy(role, pid) for role, pid in watched.items()}
    longer = Cell(cell.workload, cell.connections, cell.warm_up_s, _SECONDS + 2)
    measured = served.run(longer, 0)
    assert measured is not None
    processes.thaw(served.side.find)
    after = {role: _threads(pid) for role, pid in watched.items()}
    for spy, _ in spies.values():
        spy.wait()
    texts = texts_of(cell.name)
    parts = [f"== {cell.name}: {measured.requests_per_s * texts:.0f} texts/s", _by_process(measured, texts)]
    now = _gathered(served.side.port)
    parts += [f"{title}: {_mean(gathered, now, name)}" for name, title in _GATHERED.items()]
    for role in watched:
        parts.append(f"-- {role} (one process): threads\n{_by_thread(before[role], after[role])}")
        parts.append(f"-- {role}: share of samples that hold the GIL, calls included\n{_by_function(spies[role][1])}")
    return "\n".join(parts)


def _gathered(port: int) -> dict[str, float]:
    """Return sums and counts of our histograms of what travels and runs together; none of a peer's."""
    found: defaultdict[str, float] = defaultdict(float)
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except (OSError, ValueError):
        return found
    for family in families:
        if family.name in _GATHERED:
            for sample in family.samples:
                found[sample.name] += sample.value
    return found


def _mean(before: Mapping[str, float], after: Mapping[str, float], name: str) -> str:
    total, n = (after.get(name + end, 0.0) - before.get(name + end, 0.0) for end in ("_sum", "_count"))
    return f"{total / n:.1f}" if n else "not known"


def _by_process(measured: Measurement, texts: int) -> str:
    n = measured.requests_per_s * measured.window_s * texts
    rows = [[role, f"{seconds / n * 1e6:.0f}"] for role, seconds in measured.cpu_s.items()]
    return aligned([["all processes of a role", "CPU µs a text"], *rows])


def _by_thread(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    used = Counter({name: after[name] - before.get(name, 0.0) for name in after})
    total = sum(used.values()) or 1.0
    rows = [[name, f"{seconds:.2f}", f"{seconds / total:.0%}"] for name, seconds in used.most_common(12) if seconds]
    return aligned([["thread", "CPU s", ""], *rows])


def _by_function(path: Path) -> str:
    total, inclusive = 0, Counter[str]()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        total += int(count)
        inclusive.update(dict.fromkeys({re.sub(r":\d+\)", ")", frame) for frame in stack.split(";")[1:]}, int(count)))
    rows = [[name, f"{count / max(total, 1):.1%}"] for name, count in inclusive.most_common(_TOP)]
    held = total / (_SECONDS * _RATE)
    return aligned([[f"the GIL is held {held:.0%} of the time", ""], *rows])


def _threads(pid: int) -> dict[str, float]:
    """Return CPU seconds by thread name, Python's where there is one; threads of one name count together."""
    dump = subprocess.run([str(_PY_SPY), "dump", "--pid", str(pid)], capture_output=True, text=True, check=False).stdout
    names = dict(re.findall(r'^Thread (\d+) [^"]*"(.*)"$', dump, re.MULTILINE))
    seconds: defaultdict[str, float] = defaultdict(float)
    for task in Path(f"/proc/{pid}/task").iterdir():
        head, _, tail = task.joinpath("stat").read_text().rpartition(")")
        fields = tail.split()
        seconds[names.get(task.name) or head.partition("(")[2]] += (int(fields[11]) + int(fields[12])) * _TICK_S
    return dict(seconds)


def _spy(role: str, pid: int) -> tuple[subprocess.Popen[bytes], Path]:
    output = STATE / f"profile-{role}.txt"
    flags = f"--gil --format raw --rate {_RATE} --duration {_SECONDS} --pid {pid}".split()
    command = [str(_PY_SPY), "record", *flags, "--output", str(output)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        ["/bin/sh", "-c", 'sleep 2; exec "$@"', "spy", *command], stdout=quiet, stderr=quiet
    ), output
