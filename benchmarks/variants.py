"""Several configs of one endpoint, deployed in turn to one cluster and measured in interleaved rounds.

The model is an echo: what is measured is everything but a model. Called by `front_door` and `growth`.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks import processes, wire
from benchmarks.client import Job
from benchmarks.measure import Measurement, measure
from benchmarks.side import LOOPBACK, ROOT, STATE, Cluster
from serve_app.api_keys import KeyFile, KeyRecord, new_key

Say = Callable[[str], None]
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
PATH = "/v2/models/echo-0/infer"
_SETTLE_S = 3.0  # after a deploy: status, routes and long polls come to rest


@dataclass(frozen=True, slots=True)
class Variant:
    """A config by name; `ingress` replaces fields of the Ingress's user_config."""

    name: str
    ingress: Mapping[str, Any] = field(default_factory=dict)
    n_models: int = 1
    n_replicas: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """Return the Serve config: the default file's endpoint and second pool, with echo models."""
        parsed: dict[str, Any] = copy.deepcopy(yaml.safe_load((ROOT / "serve_config.yaml").read_text()))
        endpoint, pool = parsed["applications"][0], parsed["applications"][2]
        settings = endpoint["deployments"][0]["user_config"]
        settings |= {"pools": {"shared": {"required": True}}, "aliases": {}} | dict(self.ingress)
        replicas = pool["deployments"][1]
        replicas |= {"num_replicas": self.n_replicas, "ray_actor_options": {"num_cpus": 0.1}}
        replicas["user_config"] |= {"models": [_echo(index) for index in range(self.n_models)], "drain_s": 1}
        return parsed | {"applications": [endpoint, pool]}


@dataclass(frozen=True, slots=True)
class Found:
    """One variant under one load, medians over the rounds."""

    name: str
    connections: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: Mapping[str, float]

    @property
    def total_us(self) -> float:
        """CPU µs of all processes a request."""
        return sum(self.cpu_us.values())


def run(variants: Sequence[Variant], connections: Sequence[int], n_rounds: int, say: Say) -> list[Found]:
    """Measure every variant once a round, starting with another one each time."""
    bodies = STATE / "bodies" / "echo"
    bodies.parent.mkdir(parents=True, exist_ok=True)
    bodies.write_text(json.dumps(BODY))
    current = variants[0]
    cluster = Cluster("echo", "echo", wire.v2(PATH), lambda: current.config())
    found: dict[tuple[str, int], list[Measurement]] = {}
    try:
        cluster.start()
        for turn in range(n_rounds):
            for current in [*variants[turn % len(variants) :], *variants[: turn % len(variants)]]:
                cluster.deploy()
                time.sleep(_SETTLE_S)
                for n in connections:
                    job = Job(LOOPBACK, cluster.port, PATH, str(bodies), 1.0, 4.0, n, headers=dict(current.headers))
                    mine = cluster.find()
                    measured = measure(job, partial(processes.cpu_seconds, mine))
                    found.setdefault((current.name, n), []).append(measured)
                    say(f"round {turn + 1} {current.name:24} @{n:<3} {_line(measured)}")
    finally:
        cluster.stop()
    return [_reduce(variant.name, n, found[variant.name, n]) for n in connections for variant in variants]


def key_file(n: int) -> tuple[Path, str]:
    """Write a key file of `n` keys; return it and the last one's secret."""
    made = [new_key() for _ in range(n)]
    now = datetime.now(UTC)
    records = [
        KeyRecord(id=key_id, principal=f"team-{i}", sha256=digest, created=now)
        for i, (key_id, _, digest) in enumerate(made)
    ]
    path = STATE / f"keys-{n}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(KeyFile(keys=tuple(records)).model_dump_json(exclude_none=True))
    path.chmod(0o600)
    return path, made[-1][1]


def with_keys(name: str, n: int) -> Variant:
    """Return a variant that asks for one of `n` keys, and sends it."""
    path, key = key_file(n)
    return Variant(name, {"auth": {"keys": f"file:{path}"}}, headers={"x-api-key": key})


def _echo(index: int) -> dict[str, Any]:
    return {
        "name": f"echo-{index}",
        "task": "custom",
        "engine": "custom",
        "source": {"path": str(ROOT / "tests")},
        "options": {"factory": "echo_engine:Echo"},
        "pinned": index == 0,
    }


def _reduce(name: str, connections: int, measured: Sequence[Measurement]) -> Found:
    roles = {role for one in measured for role in one.cpu_s}
    used = {role: median(one.cpu_s.get(role, 0.0) / one.n_requests * 1e6 for one in measured) for role in roles}
    speeds, p50, p99 = zip(*((one.requests_per_s, one.p50_ms, one.p99_ms) for one in measured), strict=True)
    return Found(name, connections, median(speeds), median(p50), median(p99), dict(sorted(used.items())))


def _line(measured: Measurement) -> str:
    failures = f"  FAILED {dict(measured.failures)}" if measured.failures else ""
    return (
        f"{measured.requests_per_s:6.0f} requests/s  p50 {measured.p50_ms:6.2f}  p99 {measured.p99_ms:6.2f} ms  "
        f"CPU {measured.cpu_s_per_request * 1e6:5.0f} µs  others {measured.others_cores:.2f}{failures}"
    )


def rows(found: Sequence[Found]) -> Iterator[list[str]]:
    """Return a head and one row a variant: speed, latency, CPU by process."""
    roles = sorted({role for one in found for role in one.cpu_us})
    yield ["", "connections", "requests/s", "p50 ms", "p99 ms", "CPU µs", *roles]
    for one in found:
        numbers = (one.total_us, *(one.cpu_us.get(role, 0.0) for role in roles))
        yield [
            one.name,
            f"{one.connections}",
            f"{one.requests_per_s:.0f}",
            f"{one.p50_ms:.2f}",
            f"{one.p99_ms:.2f}",
            *(f"{number:.0f}" for number in numbers),
        ]
