"""100 small real models, memory for 20, Zipf arrivals, a real cluster: this project against `@serve.multiplexed`.

    python -m benchmarks.multiplex [--models 100] [--memory 20] [--replicas 2] [--rate 10] [--seconds 60]

The models are one trained masked language model (17 MB) with noise added, saved once each. Arrivals are Poisson, open
loop, the same requests at the same distances for every side. All sides are deployed at once and take turns of a few
seconds, in turning order, so that what else the machine does meets all alike; only one is asked at a time.

theirs    `@serve.multiplexed` over plain transformers (`multiplexed_app.py`)
ours      a pool with room for as many models; memory is that of weights
parking   a pool that besides may park `--ram-models` a replica in the page cache (under 1 MiB of its own memory each)
quiet     the pool `parking`, asked for its hot models only, so without loads: what their p99 is then

"hot" are the five most popular models. "resident": how many are in memory at the end; "private MiB", "PSS MiB": what
all replicas of a side hold then, of their own and with their share of mapped files.
"""

import argparse
import asyncio
import contextlib
import copy
import json
import random
import re
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
POOLS = ("ours", "parking")
N_HOT = 5
TURN_S = 5.0
CPUS = 0.05  # that a replica reserves: all sides are there at once, and one works
TEXT = "the cat [MASK] on the mat"


@dataclass(frozen=True)
class Arrival:
    at_s: float
    model: int


@dataclass(frozen=True)
class Answer:
    model: int
    seconds: float
    status: int


def arrivals(n_models: int, rate: float, seconds: float, seed: int = 0) -> list[Arrival]:
    """Return Poisson arrivals whose models follow Zipf(1.0)."""
    chance = random.Random(seed)
    weights = [1 / (i + 1) for i in range(n_models)]
    found, now = [], chance.expovariate(rate)
    while now < seconds:
        found.append(Arrival(now, chance.choices(range(n_models), weights)[0]))
        now += chance.expovariate(rate)
    return found


def make_models(folder: Path, n_models: int) -> int:
    """Save the models, unless they are there; return the bytes of one."""
    import torch
    from safetensors.torch import load_file, save_file

    from deployments.sources import local_path
    from deployments.spec import Source

    source = local_path(Source(package="cognition", path="model"))
    assert source is not None
    weights = load_file(source / "model.safetensors")
    for index in range(n_models):
        target = folder / f"m{index}"
        if not (target / "model.safetensors").exists():
            target.mkdir(parents=True, exist_ok=True)
            for file in source.glob("*.json"):
                shutil.copy(file, target)
            generator = torch.Generator().manual_seed(index)
            noisy = {
                key: value + 0.001 * value.std() * torch.randn(value.shape, generator=generator)
                if value.is_floating_point() and value.numel() > 1
                else value
                for key, value in weights.items()
            }
            save_file(noisy, target / "model.safetensors", metadata={"format": "pt"})
    return sum(value.numel() * value.element_size() for value in weights.values())


def config(folder: Path, args: argparse.Namespace, size: int) -> dict[str, Any]:
    """Return what is deployed: the default file's endpoint, two pools of all models, and their application."""
    import yaml

    parsed = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    endpoint, _, shared = parsed["applications"]
    [ingress] = endpoint["deployments"]
    ingress["ray_actor_options"] = {"num_cpus": CPUS}
    ingress["user_config"].update(pools={name: {"required": True} for name in POOLS}, aliases={}, access_log=False)
    for part in ("keys", "auth", "limits", "cache", "shadows", "fallbacks"):
        ingress["user_config"].pop(part, None)
    pools = [pool(copy.deepcopy(shared), name, folder, args, size) for name in POOLS]
    return {**parsed, "applications": [endpoint, *pools, theirs(folder, args)]}


def pool(app: dict[str, Any], name: str, folder: Path, args: argparse.Namespace, size: int) -> dict[str, Any]:
    """Return one of our pools: its models are named by its first letter and their number."""
    budget, ram = args.memory // args.replicas * size + size // 2, args.ram_models * size if name == "parking" else 0
    app["args"].update(budget_bytes=budget, ram_bytes=ram)
    app["name"] = name
    _, replicas = app["deployments"]
    replicas.update(num_replicas=args.replicas, max_ongoing_requests=400, ray_actor_options={"num_cpus": CPUS})
    replicas["user_config"]["models"] = [
        {"name": f"{name[0]}{i}", "task": "fill-mask", "source": {"path": str(folder / f"m{i}")}}
        for i in range(args.models)
    ]
    return app


def theirs(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the application on `@serve.multiplexed`."""
    app_args = {"folder": str(folder), "max_models": args.memory // args.replicas, "n_replicas": args.replicas}
    return {
        "name": "theirs",
        "route_prefix": "/theirs",
        "import_path": "benchmarks.multiplexed_app:build",
        "args": app_args | {"num_cpus": CPUS},
    }


async def play(url: str, side: str, plan: list[Arrival]) -> list[Answer]:
    """Send every request at its time, from the first one's; wait for all answers."""
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=500)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
        began = time.perf_counter() - plan[0].at_s

        async def one(arrival: Arrival) -> Answer:
            await asyncio.sleep(max(0.0, arrival.at_s - (time.perf_counter() - began)))
            sent = time.perf_counter()
            try:
                if side == "theirs":
                    response = await client.post(f"/theirs/m{arrival.model}", content=TEXT.encode())
                else:
                    body = {"model": f"{side[0]}{arrival.model}", "inputs": [TEXT]}
                    response = await client.post("/v1/predict", json=body)
                status = response.status_code
            except httpx.HTTPError:
                status = 0
            return Answer(arrival.model, time.perf_counter() - sent, status)

        return await asyncio.gather(*map(one, plan))


def count_loads(url: str, side: str) -> int:
    """Return how many loads from disk a side has done."""
    if side == "theirs":
        return int(httpx.get(f"{url}/theirs/loads", timeout=30, trust_env=False).json())
    page = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text
    counts = re.findall(rf'^model_endpoint_loads_total\{{.*model="{side[0]}\d+".*\}} (\S+)$', page, re.MULTILINE)
    return sum(int(float(n)) for n in counts)


def resident(url: str) -> dict[str, int]:
    """Return how many models are in memory, by pool."""
    states = httpx.post(f"{url}/v2/repository/index", json={"ready": True}, timeout=30, trust_env=False).json()
    return {name: sum(line["name"][0] == name[0] for line in states) for name in POOLS}


def memory(app: str) -> dict[str, float]:
    """Return what the replica processes of an application that hold models take together."""
    deployment = "Bounded" if app == "theirs" else "Pool"
    found = {"Private_Clean": 0, "Private_Dirty": 0, "Pss": 0}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_text().startswith(f"ray::ServeReplica:{app}:{deployment}"):
                for line in (process / "smaps_rollup").read_text().splitlines():
                    name, _, rest = line.partition(":")
                    if name in found:
                        found[name] += int(rest.split()[0])
    private = found["Private_Clean"] + found["Private_Dirty"]
    return {"private MiB": round(private / 1024, 1), "PSS MiB": round(found["Pss"] / 1024, 1)}


def summary(answers: list[Answer], loads: int) -> dict[str, float]:
    def ms(values: list[float], q: float) -> float:
        return round(1000 * statistics.quantiles(values, n=1000)[int(q * 1000) - 1], 1) if len(values) > 1 else 0.0

    good = [a for a in answers if a.status == 200]
    hot, cold = [a.seconds for a in good if a.model < N_HOT], [a.seconds for a in good if a.model >= N_HOT]
    return {
        "requests": len(answers),
        "errors": len(answers) - len(good),
        "loads": loads,
        "hit_rate": round(1 - loads / max(len(answers), 1), 3),
        "hot_p50_ms": ms(hot, 0.5),
        "hot_p99_ms": ms(hot, 0.99),
        "other_p50_ms": ms(cold, 0.5),
        "other_p99_ms": ms(cold, 0.99),
    }


def turns(plan: list[Arrival], seconds: float) -> list[list[Arrival]]:
    """Return a plan in parts of so many seconds."""
    parts: dict[int, list[Arrival]] = {}
    for arrival in plan:
        parts.setdefault(int(arrival.at_s // seconds), []).append(arrival)
    return list(parts.values())


def measure(url: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Let the sides take turns; return what was found of each."""
    sides = ("theirs", "ours", "parking", "quiet")
    answers: dict[str, list[Answer]] = {side: [] for side in sides}
    loads = dict.fromkeys(sides, 0)
    warm_up = arrivals(args.models, args.rate, args.seconds / 3, seed=1)
    for side in ("theirs", *POOLS):
        asyncio.run(play(url, side, warm_up))
    for number, part in enumerate(turns(arrivals(args.models, args.rate, args.seconds), TURN_S)):
        for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
            plan = [one for one in part if one.model < N_HOT] if side == "quiet" else part
            asked = "parking" if side == "quiet" else side
            before = count_loads(url, asked)
            answers[side] += asyncio.run(play(url, asked, plan)) if plan else []
            loads[side] += count_loads(url, asked) - before
    return {side: summary(answers[side], loads[side]) for side in sides}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--memory", type=int, default=20, help="models that fit into memory, all replicas together")
    parser.add_argument("--ram-models", type=int, default=80, help="models a replica of the pool `parking` may park")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rate", type=float, default=8.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "multiplex-models")
    args = parser.parse_args()

    from serve_app.local import dashboard, node
    from serve_app.local.cluster import Options

    size = make_models(args.folder, args.models)
    state_dir = Path(tempfile.mkdtemp(prefix="multiplex-"))
    cluster = node.start(state_dir, Options(pythonpath=(str(ROOT),)))
    try:
        dashboard.deploy(cluster, config(args.folder, args, size))
        dashboard.wait_ready(cluster)
        found = measure(cluster.http_url, args)
        in_memory = resident(cluster.http_url)
        taken = {app: memory(app) for app in ("theirs", *POOLS)}
    finally:
        node.stop(state_dir)
        node.discard(state_dir)
    for side, row in found.items():
        print(side, json.dumps(row | taken.get(side, {})))
    for side in POOLS:
        ratios = {key: round(found[side][key] / value, 2) for key, value in found["theirs"].items() if key in _SHOWN}
        ratios["hot p99 / quiet"] = round(found[side]["hot_p99_ms"] / found["quiet"]["hot_p99_ms"], 2)
        print(f"{side} / theirs", json.dumps(ratios | {"resident": in_memory[side]}))


_SHOWN = ("loads", "hot_p50_ms", "hot_p99_ms", "other_p50_ms", "other_p99_ms")

if __name__ == "__main__":
    main()
