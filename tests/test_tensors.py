import numpy as np
import pytest

from deployments.errors import InvalidInput
from deployments.tensors import check_inputs, check_output_names, datatype_of
from deployments.types import Array, Datatype, Signature, TensorSpec, text_array

TEXT = TensorSpec("text", Datatype.BYTES, (-1,))
PAIR = TensorSpec("text_pair", Datatype.BYTES, (-1,), optional=True)
IMAGE = Signature((TensorSpec("image", Datatype.FP32, (-1, 3, 2)),), (TensorSpec("label", Datatype.BYTES, (-1,)),))
TEXTS = Signature((TEXT, PAIR), ())


def floats(*shape: int) -> Array:
    return np.zeros(shape, dtype=np.float32)


def strings() -> Array:
    array = np.empty(2, dtype=np.object_)
    array[:] = [b"a", "b"]
    return array


def test_what_fits_passes() -> None:
    check_inputs({"text": text_array(["a"])}, TEXTS)
    check_inputs({"text": text_array(["a"]), "text_pair": text_array(["b"])}, TEXTS)
    check_inputs({"image": floats(7, 3, 2)}, IMAGE)
    check_inputs({"whatever": floats(1)}, Signature((), ()))


BAD = [
    ({}, TEXTS, "inputs", "expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing"),
    ({"text_pair": text_array(["b"])}, TEXTS, "inputs", "missing required input(s) ['text']"),
    ({"text": text_array(["a"]), "x": floats(1)}, TEXTS, "x", "unexpected inference input 'x' for model 'm'"),
    ({"image": floats(7, 3)}, IMAGE, "image", "Expected [-1,3,2], got [7,3]"),
    ({"image": floats(7, 3, 9)}, IMAGE, "image", "Expected [-1,3,2], got [7,3,9]"),
    ({"image": floats(0, 3, 2)}, IMAGE, "image", "input 'image' is empty"),
    (
        {"image": floats(1, 3, 2).astype(np.float64)},
        IMAGE,
        "image",
        "data-type is 'FP64', but model 'm' expects 'FP32'",
    ),
    ({"text": np.array(["a"])}, TEXTS, "text", "numpy dtype <U1"),
    ({"text": strings()}, TEXTS, "text", "every element must be bytes, got str"),
    ({"text": np.zeros(1, dtype=np.complex64)}, Signature((), ()), "text", "numpy dtype complex64"),
    ({}, Signature((), ()), "inputs", "at least one tensor"),
]


@pytest.mark.parametrize(("inputs", "signature", "field", "message"), BAD)
def test_what_does_not_fit_names_the_tensor(
    inputs: dict[str, Array], signature: Signature, field: str, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_inputs(inputs, signature, "m")
    assert message in caught.value.message
    assert caught.value.details["field"] == field


def test_big_endian_numbers_are_the_same_datatype() -> None:
    assert datatype_of(np.zeros(1, dtype=np.int16)) is Datatype.INT16


def test_outputs_a_model_does_not_give_are_named() -> None:
    check_output_names(("label",), IMAGE)
    check_output_names(("anything",), TEXTS)
    with pytest.raises(InvalidInput, match="unexpected inference output 'score'"):
        check_output_names(("score",), IMAGE)


def test_no_rows_are_refused_but_a_size_of_0_further_back_is_the_models_affair() -> None:
    wide = Signature((TensorSpec("x", Datatype.FP32, (-1, -1)),), ())
    check_inputs({"x": np.zeros((1, 0), np.float32)}, wide)
    with pytest.raises(InvalidInput, match="is empty"):
        check_inputs({"x": np.zeros((0, 3), np.float32)}, wide)
