"""Writes MLServer's two settings files into the current folder, then becomes `mlserver start`."""

import json
import os
from pathlib import Path

if __name__ == "__main__":
    workers = int(os.environ.get("BENCH_WORKERS", "0"))
    settings = {
        "http_port": int(os.environ["BENCH_PORT"]),
        "grpc_port": int(os.environ["BENCH_GRPC_PORT"]),
        "metrics_port": int(os.environ["BENCH_METRICS_PORT"]),
        "host": "127.0.0.1",
        "parallel_workers": workers,
        "debug": False,
    }
    model = {
        "name": "minilm",
        "implementation": "benchmarks.servers.mlserver_runtime.MiniLM",
        "max_batch_size": 32,
        "max_batch_time": 0.005,
    }
    Path("settings.json").write_text(json.dumps(settings))
    Path("model-settings.json").write_text(json.dumps(model))
    os.execlp("mlserver", "mlserver", "start", ".")  # noqa: S606  to be one process, not two
