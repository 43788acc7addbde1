"""Products by oneDNN or by torch's own choice: the same answers, whatever the shape; layers are left as they were."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deployments.engines import products


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def choice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(products, "prefers_onednn", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("shape", [(0, 6), (1, 6), (5, 6), (2, 3, 6), (1, 40, 6)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("choice")
def test_every_shape_is_multiplied_as_ever(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(6, 4, bias=bias, dtype=dtype)
    x = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        want = dense(x)
        changed = products.quicken(nn.Sequential(dense))
        got = dense(x)
        for one in changed:
            one.undo()
    assert got.shape == want.shape
    torch.testing.assert_close(got, want)
    assert "forward" not in vars(dense)


def test_only_float32_is_changed_and_only_where_it_pays(choice: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16))
    assert [one._dense for one in products.quicken(model)] == ([model[0]] if choice else [])


def test_the_trial_has_an_answer() -> None:
    assert products.prefers_onednn() in (True, False)


@given(st.integers(1, 100_000))
def test_an_even_number_of_rows_is_hardly_larger_and_one_of_few(n_rows: int) -> None:
    found = products.even(n_rows)
    assert n_rows <= found <= n_rows * 17 / 16
    assert products.even(found) == found


def test_there_are_sixteen_even_numbers_to_the_doubling() -> None:
    assert len({products.even(n) for n in range(513, 1025)}) == 16
    assert [products.even(n) for n in range(1, 33)] == list(range(1, 33))
