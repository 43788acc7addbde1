"""`examples/`: entries that a pool takes, engines that keep the contract."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from deployments.engines import load_engine
from deployments.errors import InvalidInput
from deployments.spec import ModelSpec
from deployments.types import InferRequest, Tensors
from serve_app.validation import Scope, check

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "triton"
APPLICATIONS = yaml.safe_load((EXAMPLES / "serve_config.yaml").read_text())["applications"]
ENTRIES = {entry["name"]: entry for entry in APPLICATIONS[1]["deployments"][1]["user_config"]["models"]}


@pytest.fixture(autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def answer(name: str, **inputs: object) -> Tensors:
    engine = load_engine(EXAMPLES, ModelSpec.model_validate(ENTRIES[name]), "cpu")
    request = InferRequest(name, {key: np.array(value) for key, value in inputs.items()})
    return engine.finish(request, engine.run(engine.prepare(request)))


def test_simple_adds_and_subtracts() -> None:
    a, b = np.arange(32, dtype=np.int32).reshape(2, 16), np.full((2, 16), 3, dtype=np.int32)
    found = answer("simple", INPUT0=a, INPUT1=b)
    assert np.array_equal(found["OUTPUT0"], a + b)
    assert np.array_equal(found["OUTPUT1"], a - b)
    assert found["OUTPUT0"].dtype == np.int32


def test_simple_int8_does_so_in_its_own_datatype() -> None:
    a, b = np.arange(16, dtype=np.int8).reshape(1, 16), np.ones((1, 16), dtype=np.int8)
    found = answer("simple_int8", INPUT0=a, INPUT1=b)
    assert np.array_equal(found["OUTPUT1"], a - b)
    assert found["OUTPUT1"].dtype == np.int8


def test_simple_string_does_so_on_strings() -> None:
    numbers = np.array([[str(i).encode() for i in range(16)]], dtype=np.object_)
    found = answer("simple_string", INPUT0=numbers, INPUT1=numbers)
    assert found["OUTPUT0"][0, 5] == b"10"
    assert found["OUTPUT1"][0, 5] == b"0"
    with pytest.raises(InvalidInput):
        answer("simple_string", INPUT0=np.full((1, 16), b"x", dtype=np.object_), INPUT1=numbers)


@pytest.mark.parametrize("name", [name for name in ENTRIES if "identity" in name])
def test_identities_give_back_what_came(name: str) -> None:
    datatype = ENTRIES[name]["options"]["kwargs"]["datatype"]
    array = np.array([[b"a", b""]], dtype=np.object_) if datatype == "BYTES" else np.ones((1, 2), np.float32)
    assert np.array_equal(answer(name, INPUT0=array)["OUTPUT0"], array)


def test_the_example_that_strings_document_runs() -> None:
    inputs = load_engine(EXAMPLES, ModelSpec.model_validate(ENTRIES["simple_string"]), "cpu").signature.inputs
    arrays = {spec.name: np.char.encode(np.array(spec.example)).astype(object) for spec in inputs}
    assert answer("simple_string", **arrays)["OUTPUT0"][0, 3] == b"6"


def test_the_configuration_is_valid() -> None:
    report = check(EXAMPLES / "serve_config.yaml", Scope(hashes_files=True))
    assert report.errors == report.warnings == ()


def test_rows_must_be_as_many() -> None:
    with pytest.raises(InvalidInput):
        answer("simple", INPUT0=np.ones((2, 16), np.int32), INPUT1=np.ones((1, 16), np.int32))
