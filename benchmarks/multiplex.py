"""100 small real models, memory for 20, Zipf arrivals, a real cluster: this project against `@serve.multiplexed`.

    python -m benchmarks.multiplex [--models 100] [--memory 20] [--replicas 2] [--rate 10] [--seconds 60]

The models are one trained masked language model (17 MB) with noise added, saved once each. Arrivals are Poisson, open
loop: the same requests at the same times for both sides, which take turns. "hot" are the five most popular models.
Memory is that of weights. With `--ram-models` ours is measured again with room to park so many in the page cache, each
of which takes under 1 MiB of a replica's own memory. "quiet" is a plan of hot models only, so without loads: what their
p99 is then. "resident": how many are in memory at the end.
"""

import argparse
import asyncio
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
N_HOT = 5
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


def ours(folder: Path, args: argparse.Namespace, size: int, ram_models: int) -> dict[str, Any]:
    """Return the config of this project: the default one's endpoint, and one pool of all models."""
    import yaml

    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    endpoint, _, shared = config["applications"]
    [ingress] = endpoint["deployments"]
    ingress["user_config"].update(pools={"shared": {"required": True}}, aliases={}, access_log=False)
    for part in ("keys", "auth", "limits", "cache", "shadows", "fallbacks"):
        ingress["user_config"].pop(part, None)
    budget = args.memory // args.replicas * size + size // 2
    shared["args"].update(budget_bytes=budget, ram_bytes=ram_models * size)
    _, pool = shared["deployments"]
    pool["num_replicas"] = args.replicas
    pool["max_ongoing_requests"] = 400
    pool["user_config"]["models"] = [
        {"name": f"m{i}", "task": "fill-mask", "source": {"path": str(folder / f"m{i}")}} for i in range(args.models)
    ]
    return {**config, "applications": [endpoint, shared]}


def theirs(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the config of the app on `@serve.multiplexed`."""
    app_args = {"folder": str(folder), "max_models": args.memory // args.replicas, "n_replicas": args.replicas}
    app = {"name": "theirs", "route_prefix": "/", "import_path": "benchmarks.multiplexed_app:build", "args": app_args}
    return {"applications": [app]}


async def play(url: str, is_ours: bool, plan: list[Arrival]) -> list[Answer]:
    """Send every request at its time; wait for all answers."""
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=500)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
        began = time.perf_counter()

        async def one(arrival: Arrival) -> Answer:
            await asyncio.sleep(max(0.0, arrival.at_s - (time.perf_counter() - began)))
            sent = time.perf_counter()
            try:
                if is_ours:
                    response = await client.post("/v1/predict", json={"model": f"m{arrival.model}", "inputs": [TEXT]})
                else:
                    response = await client.post(f"/m{arrival.model}", content=TEXT.encode())
                status = response.status_code
            except httpx.HTTPError:
                status = 0
            return Answer(arrival.model, time.perf_counter() - sent, status)

        return await asyncio.gather(*map(one, plan))


def count_loads(url: str, is_ours: bool) -> int:
    if not is_ours:
        return int(httpx.get(f"{url}/loads", timeout=30, trust_env=False).json())
    page = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text
    return sum(int(float(n)) for n in re.findall(r"^model_endpoint_loads_total\{.*\} (\S+)$", page, re.MULTILINE))


def look(url: str) -> dict[str, int]:
    """Return how many of our models are in memory, and what the largest batch took besides."""
    page = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text
    peaks = re.findall(r"^model_endpoint_activation_peak_bytes\{.*\} (\S+)$", page, re.MULTILINE)
    states = httpx.post(f"{url}/v2/repository/index", json={"ready": True}, timeout=30, trust_env=False).json()
    return {"resident": len(states), "peak_mib": round(max(map(float, peaks), default=0) / 2**20)}


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--memory", type=int, default=20, help="models that fit into memory, all replicas together")
    parser.add_argument("--ram-models", type=int, default=80, help="models a replica may park, in a run of its own")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "multiplex-models")
    parser.add_argument("--only", choices=("theirs", "ours", "ours, parking"))
    args = parser.parse_args()

    from serve_app.local import dashboard, node
    from serve_app.local.cluster import Options

    size = make_models(args.folder, args.models)
    warm_up = arrivals(args.models, args.rate, args.seconds / 3, seed=1)
    plan = arrivals(args.models, args.rate, args.seconds)
    state_dir = Path(tempfile.mkdtemp(prefix="multiplex-"))
    cluster = node.start(state_dir, Options(pythonpath=(str(ROOT),)))
    results: dict[str, dict[str, float]] = {}
    try:
        for side in ("theirs", "ours", "ours, parking"):
            if args.only not in (None, side):
                continue
            is_ours, ram_models = side != "theirs", args.ram_models if side == "ours, parking" else 0
            dashboard.deploy(
                cluster, ours(args.folder, args, size, ram_models) if is_ours else theirs(args.folder, args)
            )
            if is_ours:
                dashboard.wait_ready(cluster)
            asyncio.run(play(cluster.http_url, is_ours, warm_up))
            if side == "ours":
                hot = [arrival for arrival in warm_up if arrival.model < N_HOT]
                print("quiet", json.dumps(summary(asyncio.run(play(cluster.http_url, is_ours, hot)), 0)), flush=True)
            before = count_loads(cluster.http_url, is_ours)
            answers = asyncio.run(play(cluster.http_url, is_ours, plan))
            results[side] = summary(answers, count_loads(cluster.http_url, is_ours) - before)
            print(side, json.dumps(results[side] | (look(cluster.http_url) if is_ours else {})), flush=True)
    finally:
        node.stop(state_dir)
        node.discard(state_dir)
    base = results.pop("theirs", {})
    for side, found in results.items():
        ratios = {key: round(found[key] / value, 2) for key, value in base.items() if value and key in _SHOWN}
        print(f"{side} / theirs", json.dumps(ratios))


_SHOWN = ("loads", "hot_p50_ms", "hot_p99_ms", "other_p50_ms", "other_p99_ms")

if __name__ == "__main__":
    main()
