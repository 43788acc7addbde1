"""How each kind of server is asked for embeddings, and how its answer is read. Pure; used by `sides` and `equality`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Wire:
    """A path, and the codec of its bodies."""

    path: str
    write: Callable[[Sequence[str]], Any]
    read: Callable[[Any], Any]

    def body(self, texts: Sequence[str]) -> bytes:
        """Return the JSON body that asks for the embeddings of `texts`."""
        return json.dumps(self.write(texts)).encode()

    def vectors(self, answer: bytes) -> Vectors:
        """Return one row a text."""
        return np.array(self.read(json.loads(answer)), dtype=np.float32)


def _v2_input(name: str, shape: Sequence[int], texts: Sequence[str], **extra: Any) -> dict[str, Any]:
    tensor = {"name": name, "shape": list(shape), "datatype": "BYTES", "data": list(texts), **extra}
    return {"inputs": [tensor]}


def _v2_rows(answer: Any) -> Any:
    (output,) = answer["outputs"]
    return np.reshape(output["data"], (-1, output["shape"][-1]))


def openai(path: str = "/v1/embeddings", model: str = "minilm") -> Wire:
    """Return the OpenAI embeddings API: ours and infinity."""
    return Wire(
        path,
        lambda texts: {"model": model, "input": list(texts)},
        lambda answer: [row["embedding"] for row in answer["data"]],
    )


def plain(path: str = "/embed") -> Wire:
    """Return what our own servers for FastAPI, Ray and LitServe speak."""
    return Wire(path, lambda texts: {"texts": list(texts)}, lambda answer: answer["embeddings"])


def bento(path: str = "/embed") -> Wire:
    """Return what BentoML makes of a typed method: its result alone."""
    return Wire(path, lambda texts: {"texts": list(texts)}, lambda answer: answer)


def v2(path: str = "/v2/models/minilm/infer", *, columns: bool = False) -> Wire:
    """Return the Open Inference Protocol: Triton (which wants rows of one column), MLServer, KServe."""
    return Wire(path, lambda texts: _v2_input("text", (len(texts), 1) if columns else (len(texts),), texts), _v2_rows)
