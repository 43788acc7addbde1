"""Generation: ours over HTTP, `transformers serve` (continuous batching) over HTTP, and a bare `generate_batch`.

    python -m benchmarks.generation [--loads 1 8 32] [--tokens 32] [--sides ours serve generate_batch] [--out FILE]

The same model (SmolLM2-135M in float32), prompts and machine; greedy. In each round all sides run at every load, one
after the other; a peer that is not being measured stands still. Texts must be equal. Time to first token and time a
token are of streamed chat completions; tokens/s counts all streams; CPU is that of the side's own processes.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.machine import describe
from benchmarks.processes import cpu_seconds
from serve_app.local import dashboard, node
from serve_app.local.cluster import Cluster, Options
from serve_app.local.processes import Process

ROOT = Path(__file__).resolve().parents[1]
TOPICS = ("rivers", "bread", "chess", "rain", "maps", "violins", "bees", "bridges")
THREADS = 2
# Left to itself transformers takes nearly all memory for its cache; here as many tokens as ours, 5,824.
BLOCK_SIZE, N_BLOCKS, BATCH_TOKENS = 32, 182, 512


@dataclass(frozen=True)
class Cell:
    """One side at one load."""

    side: str
    load: int
    tokens_per_s: float
    cpu_s_per_token: float
    first_token_p50_ms: float
    first_token_p99_ms: float
    token_p50_ms: float
    token_p99_ms: float
    peak_mib: float


@dataclass
class Told:
    """What one stream said, and when."""

    text: str
    sent: float
    times: list[float]


def prompts(n: int) -> list[str]:
    return [f"Write a short paragraph about {TOPICS[i % len(TOPICS)]}, version {i}." for i in range(n)]


def model_folder() -> Path:
    from deployments.sources import fetch
    from deployments.spec import ModelSpec

    config = yaml.safe_load((ROOT / "examples/chat/serve_config.yaml").read_text())
    entry = config["applications"][1]["deployments"][1]["user_config"]["models"][0]
    return fetch(ModelSpec.model_validate(entry), Path("~/.cache/model-endpoint").expanduser())


async def ask(client: httpx.AsyncClient, model: str, prompt: str, n_tokens: int) -> Told:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": n_tokens,
        "temperature": 0,
        "stream": True,
    }
    told = Told("", time.perf_counter(), [])
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError((await answer.aread()).decode()[:500])
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line[6:])["choices"]
            piece = (choices[0]["delta"].get("content") or "") if choices else ""
            if piece:
                told.times.append(time.perf_counter())
                told.text += piece
    return told


async def streams(url: str, model: str, load: int, n_tokens: int) -> list[Told]:
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        return await asyncio.gather(*(ask(client, model, prompt, n_tokens) for prompt in prompts(load)))


class Ours:
    name = "ours"

    def __init__(self, folder: Path) -> None:
        self._state = Path(tempfile.mkdtemp(prefix="generation-"))
        self._cluster: Cluster = node.start(self._state, Options(pythonpath=(str(ROOT),)))
        config = yaml.safe_load((ROOT / "examples/chat/serve_config.yaml").read_text())
        config["applications"][1]["args"]["threads"] = THREADS
        dashboard.deploy(self._cluster, config, timeout_s=300)
        dashboard.wait_ready(self._cluster, timeout_s=300)

    def run(self, load: int, n_tokens: int) -> list[Told]:
        return asyncio.run(streams(self._cluster.http_url, "smollm2", load, n_tokens))

    def processes(self) -> Sequence[Process]:
        return node.processes(self._state)

    def peak_mib(self) -> float:
        pools = [p for p in self.processes() if ":Pool" in " ".join(p.args)]
        return max((peak_mib(p.pid) for p in pools), default=0.0)

    def freeze(self, is_frozen: bool) -> None:
        """Do nothing: idle, it takes next to nothing, and Ray takes a process that stands still for dead."""

    def stop(self) -> None:
        node.stop(self._state)
        node.discard(self._state)


class Child:
    """A peer in one process of its own."""

    def __init__(self, command: Sequence[str], **kwargs: Any) -> None:
        env = os.environ | {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self.child = subprocess.Popen(list(command), env=env, start_new_session=True, **kwargs)

    def processes(self) -> Sequence[Process]:
        return [Process(self.child.pid, self.child.pid, 0, (), "")]

    def peak_mib(self) -> float:
        return peak_mib(self.child.pid)

    def freeze(self, is_frozen: bool) -> None:
        self.child.send_signal(signal.SIGSTOP if is_frozen else signal.SIGCONT)

    def stop(self) -> None:
        self.child.send_signal(signal.SIGCONT)
        self.child.kill()
        self.child.wait()


class TransformersServe(Child):
    name = "transformers serve"

    def __init__(self, folder: Path) -> None:
        self._model, port = str(folder), free_port()
        command = [str(Path(sys.executable).with_name("transformers")), "serve", self._model, "--continuous-batching"]
        more = ["--dtype", "float32", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
        more += ["--cb-block-size", str(BLOCK_SIZE), "--cb-num-blocks", str(N_BLOCKS)]
        more += ["--cb-max-batch-tokens", str(BATCH_TOKENS)]
        super().__init__([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 180
        while time.monotonic() < until:
            try:
                if httpx.get(f"{self._url}/health", timeout=5, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise RuntimeError("transformers serve did not start")

    def run(self, load: int, n_tokens: int) -> list[Told]:
        return asyncio.run(streams(self._url, self._model, load, n_tokens))


class GenerateBatch(Child):
    name = "generate_batch"

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.generation", "--child", str(folder)]
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.child.stdout is not None
        assert self.child.stdout.readline().strip() == "ready"

    def run(self, load: int, n_tokens: int) -> list[Told]:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        sent = time.perf_counter()
        self.child.stdin.write(f"{load} {n_tokens}\n")
        self.child.stdin.flush()
        texts = json.loads(self.child.stdout.readline())
        return [Told(text, sent, [time.perf_counter()]) for text in texts]


SIDES: dict[str, Any] = {"generate_batch": GenerateBatch, "serve": TransformersServe, "ours": Ours}


def child(folder: str) -> None:
    """Run batches asked for on standard input with transformers' `generate_batch`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    batching = ContinuousBatchingConfig(block_size=BLOCK_SIZE, num_blocks=N_BLOCKS, max_batch_tokens=BATCH_TOKENS)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        load, n_tokens = map(int, line.split())
        config = GenerationConfig(max_new_tokens=n_tokens, do_sample=False, eos_token_id=2, pad_token_id=2)
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts(load)]
        inputs = [tokenizer.apply_chat_template(one, add_generation_prompt=True)["input_ids"] for one in asked]
        done = model.generate_batch(
            inputs=inputs, generation_config=config, continuous_batching_config=batching, progress_bar=False
        )
        outputs = sorted(done.values(), key=lambda one: inputs.index(list(one.prompt_ids)))
        texts = [tokenizer.decode(one.generated_tokens, skip_special_tokens=True) for one in outputs]
        sys.stdout.write(json.dumps(texts) + "\n")
        sys.stdout.flush()


def measure(side: Any, load: int, n_tokens: int, count: Callable[[str], int]) -> tuple[Cell, list[str]]:
    side.freeze(False)
    before, began = sum(cpu_seconds(side.processes()).values()), time.perf_counter()
    told = side.run(load, n_tokens)
    seconds = time.perf_counter() - began
    cpu_s = sum(cpu_seconds(side.processes()).values()) - before
    side.freeze(True)
    total = sum(count(one.text) for one in told)
    first = [one.times[0] - one.sent for one in told]
    gaps = [(one.times[-1] - one.times[0]) / max(count(one.text) - 1, 1) for one in told]
    cell = Cell(
        side.name,
        load,
        round(total / seconds, 2),
        round(cpu_s / total, 4),
        *(round(1e3 * value, 1) for value in (*middle_and_tail(first), *middle_and_tail(gaps))),
        round(side.peak_mib(), 0),
    )
    return cell, [one.text for one in told]


def middle_and_tail(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    from transformers import AutoTokenizer

    folder = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sides: list[Any] = []
    cells: list[Cell] = []
    try:
        for kind in (SIDES[name] for name in args.sides):
            sides.append(kind(folder))
            sides[-1].run(1, 4)
            sides[-1].freeze(True)
        for _ in range(args.rounds):
            for load in args.loads:
                texts: dict[str, list[str]] = {}
                for side in sides:
                    cell, texts[side.name] = measure(side, load, args.tokens, lambda t: len(tokenizer(t)["input_ids"]))
                    cells.append(cell)
                    print(json.dumps(asdict(cell)), flush=True)
                equal = sum(len(set(one)) == 1 for one in zip(*texts.values(), strict=True))
                print(f"load {load}: {equal} of {load} texts equal on all sides", flush=True)
    finally:
        for side in sides:
            side.stop()
    if args.out:
        args.out.write_text(json.dumps({"machine": describe(), "cells": [asdict(c) for c in cells]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
