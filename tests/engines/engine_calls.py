"""How tests call an engine: as a pool does, each item alone, or everybody's items together."""

import random
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from deployments.engines import load_engine
from deployments.engines.base import Engine, Unsettled
from deployments.spec import ModelSpec
from deployments.tensors import check_inputs
from deployments.types import Array, InferRequest, Tensors, text_array

TOLERANCE = 1e-4


def load(path: Path, task: str, **fields: Any) -> Engine:
    """Load a model on CPU as a pool would, its entry written with `fields`; it has settled how it runs."""
    spec = ModelSpec.model_validate({"name": "m", "task": task, "source": {"path": str(path)}, **fields})
    engine = load_engine(path, spec, "cpu")
    engine.warm_up()
    if isinstance(engine, Unsettled):
        engine.settle()
    return engine


def request(params: Mapping[str, Any] | None = None, **inputs: Any) -> InferRequest:
    """Make a request; lists of strings become BYTES tensors."""
    tensors = {name: _tensor(value) for name, value in inputs.items()}
    return InferRequest("m", tensors, params=params or {})


def alone(engine: Engine, asked: InferRequest) -> Tensors:
    """Answer one request, every item in a run of its own."""
    check_inputs(asked.inputs, engine.signature)
    outputs = [engine.run([item])[0] for item in engine.prepare(asked)]
    return engine.finish(asked, outputs)


def together(engine: Engine, requests: Iterable[InferRequest], seed: int = 0) -> list[Tensors]:
    """Answer requests with their items mixed into one run a group, in random order."""
    requests = list(requests)
    items = [(owner, item) for owner, asked in enumerate(requests) for item in engine.prepare(asked)]
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda index: str(items[index][1].group))  # stable: random within a group
    outputs: dict[int, Any] = {}
    for _, indices in groupby(order, key=lambda index: str(items[index][1].group)):
        batch = list(indices)
        outputs.update(zip(batch, engine.run([items[index][1] for index in batch]), strict=True))
    return [
        engine.finish(asked, [outputs[i] for i, (of, _) in enumerate(items) if of == owner])
        for owner, asked in enumerate(requests)
    ]


def assert_equal(got: Tensors, want: Tensors) -> None:
    """Check that answers are the same: names and text exactly, numbers within TOLERANCE."""
    assert list(got) == list(want)
    for name, array in want.items():
        if array.dtype.kind in "fc":
            np.testing.assert_allclose(got[name], array, atol=TOLERANCE, rtol=0, err_msg=name)
        else:
            assert got[name].tolist() == array.tolist(), name


def assert_matches_signature(engine: Engine, asked: InferRequest, answer: Tensors) -> None:
    """Check an answer's names, datatypes and fixed sizes against what the engine promises."""
    check_inputs(asked.inputs, engine.signature)
    output_side = type(engine.signature)(engine.signature.outputs, ())
    check_inputs(answer, output_side)
    assert list(answer) == [spec.name for spec in engine.signature.outputs]


def texts(array: Array) -> list[str]:
    """Return a BYTES tensor's elements as strings."""
    return [element.decode() for element in array.flat]


def _tensor(value: Any) -> Array:
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return text_array(value)
    if isinstance(value, list) and all(isinstance(v, bytes) for v in value):
        array = np.empty(len(value), dtype=np.object_)
        array[:] = value
        return array
    return np.asarray(value)
