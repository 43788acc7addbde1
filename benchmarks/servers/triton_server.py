"""Triton through PyTriton: dynamic batching in Triton's C++ core, the model in Python processes, JSON over HTTP."""

import os

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.servers.encoder import Encoder

_MAX_BATCH = 32


def embedder(encoder: Encoder) -> object:
    """Return the inference callable of one worker."""

    @batch
    def embed(text: NDArray[np.bytes_]) -> dict[str, NDArray[np.float32]]:
        return {"embedding": encoder.embed([row.decode() for row in text[:, 0]])}

    return embed


if __name__ == "__main__":
    workers = int(os.environ.get("BENCH_WORKERS", "1"))
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(os.environ["BENCH_PORT"]),
        grpc_port=int(os.environ["BENCH_GRPC_PORT"]),
        metrics_port=int(os.environ["BENCH_METRICS_PORT"]),
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="minilm",
            infer_func=[embedder(Encoder()) for _ in range(workers)],
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="embedding", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=_MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=5000)),
        )
        triton.serve()
