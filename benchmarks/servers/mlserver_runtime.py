"""An MLServer runtime for the model; its settings turn on MLServer's adaptive batching and parallel workers."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.servers.encoder import Encoder


class MiniLM(MLModel):
    async def load(self) -> bool:
        self._encoder = Encoder()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        vectors = np.ascontiguousarray(self._encoder.embed(texts))
        output = NumpyCodec.encode_output("embedding", vectors)
        return InferenceResponse(model_name=self.name, outputs=[output])
