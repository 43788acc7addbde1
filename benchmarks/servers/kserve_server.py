"""The KServe SDK: a model behind its server, without a batcher (KServe's is a sidecar of the Kubernetes controller)."""

import os
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

from benchmarks.servers.encoder import Encoder


class MiniLM(Model):
    def __init__(self) -> None:
        super().__init__("minilm")
        self._encoder = Encoder()
        self.ready = True

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        texts = [text if isinstance(text, str) else text.decode() for text in payload.inputs[0].as_numpy().tolist()]
        vectors = np.ascontiguousarray(self._encoder.embed(texts))
        output = InferOutput(name="embedding", shape=list(vectors.shape), datatype="FP32")
        output.set_data_from_numpy(vectors, binary_data=False)
        return InferResponse(response_id=payload.id or "1", model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    ModelServer(http_port=int(os.environ["BENCH_PORT"]), enable_grpc=False, enable_latency_logging=False).start(
        [MiniLM()]
    )
