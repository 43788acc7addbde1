"""Engines by import path: an operator's own class, whole or lacking."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_calls import alone, assert_equal, load, request

from deployments.errors import ModelUnavailable
from deployments.spec import ModelSpec
from deployments.types import Datatype, InferRequest, Item, Signature, Tensors, TensorSpec


class Doubler:
    """Takes `x` FP32 [n], gives `y` = factor times x."""

    signature = Signature((TensorSpec("x", Datatype.FP32, (-1,)),), (TensorSpec("y", Datatype.FP32, (-1,)),))
    labels: tuple[str, ...] = ()

    def __init__(self, path: Path, spec: ModelSpec, device: str, *, factor: float = 2.0) -> None:
        self.made_with = (path, spec.key, device)
        self._factor = factor

    def prepare(self, request: InferRequest) -> list[Item]:
        return [Item(value) for value in request.inputs["x"]]

    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        return [item.data * self._factor for item in items]

    def finish(self, request: InferRequest, outputs: Sequence[Any]) -> Tensors:
        return {"y": np.array(outputs, dtype=np.float32)}

    def size_bytes(self) -> int:
        return 8

    def warm_up(self) -> None:
        self.run([Item(1.0)])

    def close(self) -> None:
        pass


class Lacking:
    """Keeps almost nothing of the contract."""

    signature = "text"

    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        pass

    def prepare(self, request: InferRequest) -> list[Item]:
        return []


class Failing:
    def __init__(self, path: Path, spec: ModelSpec, device: str) -> None:
        raise RuntimeError("no licence key")


def load_class(name: str, path: Path, **kwargs: Any) -> Any:
    return load(path, "custom", options={"factory": f"{__name__}:{name}", "kwargs": kwargs})


def test_custom_engine_is_made_with_its_arguments_and_answers(tmp_path: Path) -> None:
    engine = load_class("Doubler", tmp_path, factor=3.0)
    assert engine.made_with == (tmp_path, "m:1", "cpu")
    assert_equal(alone(engine, request(x=np.ones(2, np.float32))), {"y": np.full(2, 3, np.float32)})


def test_custom_engine_can_take_any_task(tmp_path: Path) -> None:
    options = {"factory": f"{__name__}:Doubler"}
    assert load(tmp_path, "fill-mask", engine="custom", options=options).size_bytes() == 8


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (f"{__name__}:Lacking", r"lacks run\(\), finish\(\), size_bytes\(\), .*signature \(a .*labels \(a tuple"),
        (f"{__name__}:Nothing", "has no Nothing"),
        ("no_such_package.models:Engine", "cannot be imported here: No module named 'no_such_package'"),
        (f"{__name__}:Failing", "RuntimeError: no licence key"),
    ],
)
def test_custom_engine_that_cannot_serve_says_what_it_lacks(tmp_path: Path, factory: str, says: str) -> None:
    with pytest.raises(ModelUnavailable, match=says):
        load(tmp_path, "custom", options={"factory": factory})


def test_unexpected_argument_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="unexpected keyword argument 'colour'"):
        load_class("Doubler", tmp_path, colour="red")
