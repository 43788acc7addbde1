"""The sides of `benchmarks.generation`: our endpoint, `transformers serve`, a bare `generate_batch`, a bare `generate`.

Each runs SmolLM2-135M in float32 with two threads, in processes of its own.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from serve_app.local import dashboard, node
from serve_app.local.cluster import Cluster, Options
from serve_app.local.processes import Process

ROOT = Path(__file__).resolve().parents[1]
TOPICS = ("rivers", "bread", "chess", "rain", "maps", "violins", "bees", "bridges")
THREADS = 2
# Left to itself transformers takes nearly all memory for its cache; here as many tokens as ours, 5,824.
BLOCK_SIZE, N_BLOCKS, BATCH_TOKENS = 32, 182, 512


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

    def step_s(self) -> float:
        """Return how long all steps of the model have taken so far."""
        page = httpx.get(f"{self._cluster.http_url}/metrics", timeout=30, trust_env=False).text
        sums = [line for line in page.splitlines() if line.startswith("model_endpoint_step_seconds_sum")]
        return sum(float(line.rpartition(" ")[2]) for line in sums)

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
        command = [sys.executable, "-m", "benchmarks.generators", str(folder)]
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.child.stdout is not None
        assert self.child.stdout.readline().strip() == "ready"

    def run(self, load: int, n_tokens: int) -> list[Told]:
        sent = time.perf_counter()
        texts = self._ask({"load": load, "n_tokens": n_tokens})
        return [Told(text, sent, [time.perf_counter()]) for text in texts]

    def first_token_s(self) -> float:
        """Return how long a bare `generate` takes for the first token of one prompt, tokenised by it as well."""
        seconds: float = self._ask({"first": True})
        return seconds

    def _ask(self, what: dict[str, Any]) -> Any:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps(what) + "\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())


SIDES: dict[str, Any] = {"generate_batch": GenerateBatch, "serve": TransformersServe, "ours": Ours}


def child(folder: str) -> None:
    """Do what standard input asks for with transformers alone; answer a line each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    batching = ContinuousBatchingConfig(block_size=BLOCK_SIZE, num_blocks=N_BLOCKS, max_batch_tokens=BATCH_TOKENS)
    greedy = {"do_sample": False, "eos_token_id": 2, "pad_token_id": 2}

    def tokens(prompt: str, **more: Any) -> Any:
        return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, **more)

    def batch(load: int, n_tokens: int) -> list[str]:
        inputs = [tokens(prompt)["input_ids"] for prompt in prompts(load)]
        done = model.generate_batch(
            inputs=inputs,
            generation_config=GenerationConfig(max_new_tokens=n_tokens, **greedy),
            continuous_batching_config=batching,
            progress_bar=False,
        )
        outputs = sorted(done.values(), key=lambda one: inputs.index(list(one.prompt_ids)))
        return [tokenizer.decode(one.generated_tokens, skip_special_tokens=True) for one in outputs]

    def first() -> float:
        began = time.perf_counter()
        inputs = tokens(prompts(1)[0], return_tensors="pt", return_dict=True)
        found = model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=1, **greedy))
        tokenizer.decode(found[0, -1:], skip_special_tokens=True)
        return time.perf_counter() - began

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        what = json.loads(line)
        sys.stdout.write(json.dumps(first() if "first" in what else batch(**what)) + "\n")
        sys.stdout.flush()


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    child(sys.argv[1])
