"""BentoML with adaptive batching, as its documentation shows it: a service whose API is `batchable`.

BentoML batches the items of the one list that each request holds.
"""

import os

import bentoml

from benchmarks.servers.encoder import Encoder

_MAX_BATCH = 32
_THREADS = os.environ.get("BENCH_THREADS", "2")


@bentoml.service(workers=int(os.environ.get("BENCH_WORKERS", "1")), traffic={"timeout": 120, "max_concurrency": 1000})
class MiniLM:
    def __init__(self) -> None:
        self._encoder = Encoder(int(_THREADS))

    @bentoml.api(batchable=True, max_batch_size=_MAX_BATCH, max_latency_ms=60_000, route="/embed")
    def embed(self, texts: list[str]) -> list[list[float]]:
        return self._encoder.embed(texts).tolist()
