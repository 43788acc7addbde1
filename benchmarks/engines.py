"""Our engine beside torch's compiler and onnxruntime, float32 and int8, without a server: texts a CPU second.

    python -m benchmarks venvs && .state/bench/venvs/onnxruntime/bin/python -m benchmarks.engines [--rounds 5]

all-MiniLM-L6-v2, one thread, batches of 32, interleaved rounds, medians. All but ours are padded, and get batches of
like length, which is the best they can get. "cosine" is the least between an engine's vectors and our float32 ones.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel

from benchmarks.packing import WORKLOADS, batches, cpu_s, minilm, texts
from benchmarks.side import STATE
from benchmarks.workload import model_path
from deployments.engines import set_up_process
from deployments.types import Array, Item

Embed = Callable[[Sequence[Item]], Array]
_FLOAT = 1  # of ONNX's types


class Hidden(nn.Module):
    """The model with what an export wants: two tensors in, one out."""

    def __init__(self) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(model_path(), attn_implementation="eager").eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (texts, longest, hidden)."""
        hidden: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


def padded(items: Sequence[Item]) -> tuple[Array, Array]:
    """Return ids and mask, each (texts, longest)."""
    ids = np.zeros((len(items), max(item.cost for item in items)), np.int64)
    mask = np.zeros_like(ids)
    for row, item in enumerate(items):
        ids[row, : item.cost] = item.data.ids
        mask[row, : item.cost] = 1
    return ids, mask


def pooled(hidden: Array, mask: Array) -> Array:
    """Return the mean of each text's token vectors."""
    weights = mask[:, :, None].astype(np.float32)
    return np.asarray((hidden * weights).sum(1) / weights.sum(1))


def ours(dtype: str) -> Embed:
    """Return our packed engine."""
    engine = minilm(packing=True, dtype=dtype)
    return lambda items: np.stack(engine.run(items))


def compiled() -> Embed:
    """Return the model behind torch's compiler, for any shape; needs a C++ compiler."""
    model = torch.compile(AutoModel.from_pretrained(model_path()).eval(), dynamic=True)

    def run(items: Sequence[Item]) -> Array:
        ids, mask = padded(items)
        with torch.inference_mode():
            batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            return pooled(model(**batch).last_hidden_state.numpy(), mask)

    return run


def exported(folder: Path) -> tuple[Path, Path]:
    """Return the model as onnxruntime's own tools make it: fused, and that in int8 with a scale a channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    folder.mkdir(parents=True, exist_ok=True)
    plain, fused, small = (folder / f"{name}.onnx" for name in ("plain", "fused", "int8"))
    sample = torch.ones(2, 9, dtype=torch.long)
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "texts", 1: "tokens"} for name in names}
    torch.onnx.export(
        Hidden(), (sample, sample), plain, input_names=names, output_names=["hidden"], dynamic_axes=axes, dynamo=False
    )
    optimizer.optimize_model(str(plain), model_type="bert", num_heads=12, hidden_size=384).save_model_to_file(
        str(fused)
    )
    options = {"DefaultTensorType": _FLOAT}
    quantize_dynamic(fused, small, per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    return fused, small


def onnx(path: Path) -> Embed:
    """Return a model behind onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(items: Sequence[Item]) -> Array:
        ids, mask = padded(items)
        (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        return pooled(hidden, mask)

    return run


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    set_up_process(1)
    fused, small = exported(STATE / "onnx")
    engines = {
        "ours, float32": ours("float32"),
        "ours, bfloat16": ours("bfloat16"),
        "torch.compile": compiled(),
        "onnxruntime": onnx(fused),
        "onnxruntime, int8": onnx(small),
    }
    for name, (low, high) in WORKLOADS.items():
        some = batches(sorted(texts(low, high), key=lambda item: item.cost))
        exact = directions(engines["ours, float32"], some)
        taken: dict[str, list[float]] = {engine: [] for engine in engines}
        for _ in range(rounds):
            for engine, embed in engines.items():
                taken[engine].append(cpu_s(lambda e=embed, b=some: [e(batch) for batch in b]))  # type: ignore[misc]
        print(f"{name:24}{'texts a CPU second':>20}{'cosine':>10}")
        for engine, embed in engines.items():
            cosine = (directions(embed, some) * exact).sum(axis=1).min()
            rate = sum(map(len, some)) / statistics.median(taken[engine])
            print(f"  {engine:22}{rate:20.0f}{cosine:10.5f}")


def directions(embed: Embed, some: Sequence[Sequence[Item]]) -> Array:
    """Return the vectors of all texts, of length 1."""
    vectors = np.concatenate([embed(batch) for batch in some])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


if __name__ == "__main__":
    main()
