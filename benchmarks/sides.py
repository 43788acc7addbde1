"""All sides by name. Peers run once with torch's own number of threads and once as two workers of one thread."""

import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import yaml

from benchmarks import wire
from benchmarks.side import ROOT, Cluster, Peer, Side

# The best peers of a full run: Triton on short texts, KServe's SDK on mixed ones, FastAPI on 32 texts a request.
FEW = ("ours", "ours-bf16", "ray", "ray-flags", "triton", "kserve", "fastapi", "ceiling")
_TWO = {"BENCH_WORKERS": "2", "BENCH_THREADS": "1"}
_BENTO = "{bin}/bentoml serve --host 127.0.0.1 --port {port} --working-dir {root}"
# Triton's Python backend loads libpython: it must be this interpreter's, not an older one of the system.
_LIBRARIES = {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}
_INFINITY = (
    "{bin}/infinity_emb v2 --model-id {model} --served-model-name minilm --engine torch --device cpu --dtype float32 "
    "--no-bettertransformer --no-compile --batch-size 32 --host 127.0.0.1 --port {port} --log-level warning"
)


def ours(replicas: int = 2, **options: Any) -> dict[str, Any]:
    """Return `serve_config.yaml` with the pool of minilm alone, its replicas of one thread each.

    Args:
        replicas: Of the pool.
        options: Replace fields of the model, e.g. `engine`.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["applications"] = [app for app in config["applications"] if app["name"] in ("endpoint", "embeddings")]
    endpoint, embeddings = config["applications"]
    endpoint["deployments"][0]["user_config"]["pools"] = {"embeddings": {"required": True}}
    (pool,) = [one for one in embeddings["deployments"] if one["name"] == "Pool"]
    pool["num_replicas"] = replicas
    pool["user_config"]["models"][0] |= options
    return config


def _documented() -> Mapping[str, Any]:
    app = {
        "name": "default",
        "route_prefix": "/",
        "import_path": "benchmarks.servers.ray_app:build",
        "args": {"replicas": 2, "threads": 1},
    }
    return {"applications": [app]}


def all_sides() -> dict[str, Side]:
    """Return every side that serves over HTTP, fresh."""
    sides: list[Side] = [
        Cluster("ours", "Model Endpoint", wire.openai(), ours),
        Cluster("ours-bf16", "Model Endpoint, bfloat16", wire.openai(), partial(ours, dtype="bfloat16")),
        Cluster("ray", "Ray Serve as documented", wire.plain(), _documented, throughput=False),
        Cluster("ray-flags", "the same + throughput flags", wire.plain(), _documented, throughput=True),
        Peer("fastapi", "FastAPI, unbatched", wire.plain(), _server("fastapi_server")),
        *_twice("litserve", "LitServe", wire.plain(), _server("litserve_server")),
        *_twice("bentoml", "BentoML", wire.bento(), [*_BENTO.split(), "benchmarks.servers.bento_service:MiniLM"]),
        *_twice("mlserver", "MLServer", wire.v2(), _server("mlserver_server")),
        *_twice("triton", "Triton (PyTriton)", wire.v2(columns=True), _server("triton_server")),
        Peer("infinity", "infinity", wire.openai("/embeddings"), _INFINITY.split(), "infinity"),
        Peer("kserve", "KServe SDK, unbatched", wire.v2(), _server("kserve_server"), "kserve"),
    ]
    return {side.name: side for side in sides}


def _twice(name: str, title: str, speaks: wire.Wire, command: Sequence[str]) -> Iterator[Peer]:
    """Give one worker with torch's own number of threads, and two workers of one thread."""
    # Triton kills a backend process that has not shown life for some seconds, be they those of a standstill.
    still = name != "triton"
    yield Peer(name, title, speaks, command, name, _LIBRARIES, may_freeze=still)
    yield Peer(f"{name}-2", f"{title}, 2 workers", speaks, command, name, {**_TWO, **_LIBRARIES}, may_freeze=still)


def _server(module: str) -> list[str]:
    return ["{python}", "-m", f"benchmarks.servers.{module}"]
