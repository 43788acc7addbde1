"""How well each text answers a query, by the cosine of their embeddings: ranking with an embedding model."""

from collections.abc import Sequence

import numpy as np

from deployments.engines.params import TextParams, parse_params
from deployments.engines.sentence_embedding import SentenceEmbedding, unit
from deployments.engines.texts import asked_with
from deployments.types import Array, InferRequest, Item, Signature, Tensors


class BiEncoder(SentenceEmbedding):
    """An embedding model with a ranker's signature."""

    def prepare(self, request: InferRequest) -> list[Item]:
        """Tokenise `query` BYTES [1], then `text` BYTES [n]; or each of `queries` BYTES [n] and its text in turn."""
        params = parse_params(TextParams, request.params)
        field = asked_with(request.inputs)
        queries = self._text_items(request, field, params, self._files.prompt("query"))
        texts = self._text_items(request, "text", params, self._files.prompt("document", "passage", "corpus"))
        if field == "query":
            return queries + texts
        return [item for pair in zip(queries, texts, strict=True) for item in pair]

    def finish(self, request: InferRequest, outputs: Sequence[Array]) -> Tensors:
        """Return `score` FP32 [n], cosines in the order of `text`."""
        vectors = unit(np.stack(outputs))
        if asked_with(request.inputs) == "queries":
            return {"score": np.einsum("nd,nd->n", vectors[::2], vectors[1::2])}
        return {"score": vectors[1:] @ vectors[0]}

    def _with_size(self, signature: Signature) -> Signature:
        return signature  # a score a text, whatever the size of the vectors
