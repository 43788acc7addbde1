"""Who takes part in an end-to-end run: a side behind its load client, or the bare loop, which has no door to knock at.

Called by `endtoend`. Both are prepared once, and then measured a cell at a time, frozen in between.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks import equality, processes, workload
from benchmarks.client import Job
from benchmarks.machine import machine_cpu_s
from benchmarks.measure import Measurement, measure
from benchmarks.side import LOOPBACK, ROOT, STATE, Side, common_env, wait_for_answer
from benchmarks.wire import Vectors
from benchmarks.workload import BULK, Cell
from serve_app.local.processes import MARK, belonging

_N_BODIES = {"short": 8000, "mixed": 2000, "bulk": 400}
_BODIES_A_ROUND = 97


class Contestant(Protocol):
    """Takes part in a run."""

    @property
    def name(self) -> str:
        """Its short name, on the command line and in results."""

    @property
    def title(self) -> str:
        """Its name in tables."""

    def start(self, expected: Vectors) -> float:
        """Start, check the answers, freeze; return the smallest cosine. Raises RuntimeError."""

    def run(self, cell: Cell, turn: int, rate_per_s: float = 0.0) -> Measurement | None:
        """Measure one cell; none if it has no meaning here."""

    def stop(self) -> None:
        """End it; idempotent."""


@dataclass
class Served:
    """A side that is asked over HTTP."""

    side: Side
    least_cosine: float = equality.COSINE
    _bodies: dict[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.side.name

    @property
    def title(self) -> str:
        return self.side.title

    def start(self, expected: Vectors) -> float:
        self.side.start()
        wait_for_answer(self.side)
        cosine = equality.check(self.side, expected, self.least_cosine)
        self._freeze()
        return cosine

    def run(self, cell: Cell, turn: int, rate_per_s: float = 0.0) -> Measurement | None:
        processes.thaw(self.side.find)
        try:
            wait_for_answer(self.side, 60)
            mine = self.side.find()
            job = Job(
                host=LOOPBACK,
                port=self.side.port,
                path=self.side.wire.path,
                bodies=str(self._bodies_of(cell.workload)),
                warm_up_s=cell.warm_up_s,
                window_s=cell.window_s,
                connections=cell.connections,
                rate_per_s=rate_per_s,
                first_body=turn * _BODIES_A_ROUND,
                seed=turn,
            )
            return measure(job, lambda: processes.cpu_seconds(mine))
        finally:
            self._freeze()

    def stop(self) -> None:
        self.side.stop()

    def _freeze(self) -> None:
        if self.side.may_freeze:
            processes.freeze(self.side.find)

    def _bodies_of(self, name: str) -> Path:
        if name not in self._bodies:
            path = STATE / "bodies" / f"{self.name}-{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\n".join(map(self.side.wire.body, workload.requests(name, _N_BODIES[name]))))
            self._bodies[name] = path
        return self._bodies[name]


@dataclass
class BareLoop:
    """The ceiling: two processes of one thread in a bare loop."""

    name: str = "ceiling"
    title: str = "bare loop, padded, sorted (no server)"
    _loops: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, expected: Vectors) -> float:
        env = dict(os.environ) | common_env() | {"BENCH_THREADS": "1", "PYTHONPATH": str(ROOT), MARK: self._mark}
        command = [sys.executable, "-m", "benchmarks.servers.ceiling"]
        pipe = subprocess.PIPE
        self._loops = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) for _ in range(2)]
        for loop in self._loops:
            assert loop.stdout is not None
            if loop.stdout.readline().strip() != "ready":
                raise RuntimeError("the bare loop did not start; its traceback is above")
        return 1.0

    def run(self, cell: Cell, turn: int, rate_per_s: float = 0.0) -> Measurement | None:
        if rate_per_s or cell.connections == 1:
            return None
        mine = belonging(self._mark, None)
        before, machine, began = processes.cpu_seconds(mine), machine_cpu_s(), time.monotonic()
        for loop in self._loops:
            assert loop.stdin is not None
            loop.stdin.write(f"{'short' if cell.workload == 'bulk' else cell.workload} {cell.window_s}\n")
            loop.stdin.flush()
        answers = [loop.stdout.readline().split() for loop in self._loops if loop.stdout is not None]
        used = {"loop": sum(processes.cpu_seconds(mine).values()) - sum(before.values())}
        texts_per_s = sum(int(n) / float(seconds) for n, seconds in answers)
        texts = 1 if cell.workload != "bulk" else BULK
        n_requests = sum(int(n) for n, _ in answers) // texts
        took = time.monotonic() - began
        others = max(machine_cpu_s() - machine - used["loop"], 0.0) / took
        nan = float("nan")
        return Measurement(texts_per_s / texts, nan, nan, n_requests, used, took, {}, others)

    @property
    def _mark(self) -> str:
        return f"bench-{self.name}-{os.getpid()}"

    def stop(self) -> None:
        for loop in self._loops:
            loop.kill()
            loop.wait()
        self._loops.clear()
