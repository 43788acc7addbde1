"""One measurement: the load client beside one side, the side's CPU seconds over the same window, the numbers.

Called by every suite that has a server. The client is another process, so that it cannot share a GIL with anything.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import Job
from benchmarks.machine import machine_cpu_s

Cpu = Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one side did in one cell; seconds of CPU are by role, of the server only."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    n_requests: int
    cpu_s: Mapping[str, float]
    window_s: float
    failures: Mapping[str, int]
    others_cores: float = 0.0  # cores that neither server nor client kept busy: somebody else's load
    turn: int = 0  # the round it is of

    @property
    def cpu_s_per_request(self) -> float:
        """CPU seconds of all the side's processes per finished request."""
        done = self.requests_per_s * self.window_s
        return sum(self.cpu_s.values()) / done if done else float("nan")


def measure(job: Job, cpu: Cpu) -> Measurement:
    """Run `job` in a client process; `cpu` tells the server's CPU seconds so far, by role."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "seen.json"
        command = [sys.executable, "-m", "benchmarks.client", str(result)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(json.dumps(asdict(job)) + "\n")
            client.stdin.flush()
            _expect(client.stdout.readline(), "begin")
            before, machine_before = cpu(), machine_cpu_s()
            _expect(client.stdout.readline(), "end")
            after, machine_after = cpu(), machine_cpu_s()
        seen = json.loads(result.read_text())
    used = {role: after[role] - before.get(role, 0.0) for role in after}
    return _reduce(seen, used, machine_after - machine_before)


def _reduce(seen: Mapping[str, Any], used: Mapping[str, float], machine_s: float) -> Measurement:
    began, ended = seen["began"], seen["ended"]
    latencies = [s for s, inside in zip(seen["latency_s"], seen["is_in_window"], strict=True) if inside]
    latencies = latencies or seen["latency_s"]
    return Measurement(
        requests_per_s=rate(seen["done_at"], began, ended),
        p50_ms=percentile(latencies, 0.50) * 1e3,
        p99_ms=percentile(latencies, 0.99) * 1e3,
        n_requests=sum(began < at <= ended for at in seen["done_at"]),
        cpu_s=used,
        window_s=ended - began,
        failures=seen["failures"],
        others_cores=max(machine_s - sum(used.values()) - seen["cpu_s"], 0.0) / (ended - began),
    )


def rate(done_at: Sequence[float], began: float, ended: float) -> float:
    """Return completions a second, from the last one before the window to the last one in it.

    Batches finish in lumps of up to a second's work: a window that counts from its own edges is off by half a lump.
    """
    first = max((at for at in done_at if at <= began), default=began)
    last = max((at for at in done_at if at <= ended), default=first)
    n = sum(first < at <= last for at in done_at)
    return n / (last - first) if n and last > first else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of values does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def _expect(line: str, word: str) -> None:
    if line.strip() != word:
        raise RuntimeError(f"the load client said {line!r} instead of {word!r}; its traceback is above")
