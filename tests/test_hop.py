"""The hop: what is packed on one side is what comes out on the other."""

import pickle
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from deployments.errors import InvalidInput, ServeError
from deployments.hop import Packed, pack_outcomes, pack_requests, unpack_outcomes, unpack_requests
from deployments.types import NUMPY_DTYPES, Array, InferRequest, InferResult, Timings, Usage, text_array

DTYPES = [dtype for dtype in NUMPY_DTYPES.values() if not dtype.hasobject]
NUMBERS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: numpy_st.arrays(dtype, numpy_st.array_shapes(min_dims=0, min_side=0, max_side=4))
)
TEXTS = st.lists(st.text(max_size=5), max_size=4).map(text_array)
TENSORS = st.dictionaries(st.text(max_size=3), NUMBERS | TEXTS, max_size=3)


def across(packed: Packed) -> Packed:
    """Do as Serve does."""
    crossed: Packed = pickle.loads(pickle.dumps(packed))  # noqa: S301 - our own
    return crossed


def assert_same(got: Any, want: Any) -> None:
    for field in fields(want):
        one, other = getattr(got, field.name), getattr(want, field.name)
        if field.name in ("inputs", "outputs") and isinstance(other, dict):
            assert list(one) == list(other)
            for name in other:
                assert one[name].dtype == other[name].dtype
                np.testing.assert_array_equal(one[name], other[name])
        else:
            assert one == other, field.name


@given(st.lists(TENSORS, max_size=4))
def test_requests_cross(tensors: list[dict[str, Array]]) -> None:
    requests = [
        InferRequest(f"m{i}", inputs, "2", {"top_k": i}, ("y",), 9.0, f"id{i}", f"tenant{i}", i, "00-trace-01")
        for i, inputs in enumerate(tensors)
    ]
    packed = across(pack_requests(requests, [1.5] * len(requests)))
    for got, want in zip(unpack_requests(packed), requests, strict=True):
        assert_same(got, want.with_timeout(1.5))


@given(st.lists(TENSORS, max_size=4))
def test_outcomes_cross_with_errors_among_them(tensors: list[dict[str, Array]]) -> None:
    outcomes: list[InferResult | ServeError] = [
        InferResult("m", "1", outputs, Usage(i, 7), Timings(0.1, 0.2, 0.3, 0.4, 0.5))
        for i, outputs in enumerate(tensors)
    ]
    outcomes.insert(1, InvalidInput("wrong", field="text"))
    got = unpack_outcomes(across(pack_outcomes(outcomes)))
    assert len(got) == len(outcomes)
    for one, other in zip(got, outcomes, strict=True):
        if isinstance(other, ServeError):
            assert isinstance(one, InvalidInput)
            assert (one.message, one.details) == (other.message, other.details)
        else:
            assert_same(one, other)


def test_arrays_may_be_written_to_and_views_cross_as_they_look() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    [got] = unpack_requests(pack_requests([InferRequest("m", {"x": turned})], [None]))
    np.testing.assert_array_equal(got.inputs["x"], turned)
    got.inputs["x"][0, 0] = 5


@pytest.mark.parametrize("n_bytes", [1, 3, 8, 9])
def test_every_array_is_aligned(n_bytes: int) -> None:
    inputs = {"odd": np.zeros(n_bytes, np.uint8), "wide": np.arange(4, dtype=np.float64)}
    [got] = unpack_requests(pack_requests([InferRequest("m", inputs)], [None]))
    assert got.inputs["wide"].flags.aligned
    np.testing.assert_array_equal(got.inputs["wide"], inputs["wide"])
