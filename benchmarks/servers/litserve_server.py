"""LitServe with batching, as its documentation shows it: decode, batch, predict, unbatch, encode."""

import os
from typing import Any

import litserve as ls

from benchmarks.servers.encoder import Encoder

_MAX_BATCH = 32


class Api(ls.LitAPI):
    """One request is a list of texts; LitServe batches requests."""

    def setup(self, device: str) -> None:
        self._encoder = Encoder()

    def decode_request(self, request: dict[str, list[str]]) -> list[str]:
        return request["texts"]

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        return inputs

    def predict(self, x: list[list[str]]) -> list[Any]:
        vectors = iter(self._encoder.embed([text for texts in x for text in texts]).tolist())
        return [[next(vectors) for _ in texts] for texts in x]

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"embeddings": output}


if __name__ == "__main__":
    api = Api(max_batch_size=_MAX_BATCH, batch_timeout=0.005, api_path="/embed")
    workers = int(os.environ.get("BENCH_WORKERS", "1"))
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=120)
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")
