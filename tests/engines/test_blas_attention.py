"""Attention by numpy's BLAS: torch's answers, whatever the lengths; where it is taken, and where not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from deployments.engines import blas_attention, packed_attention
from deployments.engines.runtime import set_up

WIDE = 3 * blas_attention.LONG


@given(
    n_texts=st.integers(1, 3),
    length=st.sampled_from([1, 2, 31, 128, 400]),  # all heads in a group; some; one
    n_heads=st.sampled_from([1, 3, 12]),
    d=st.sampled_from([1, 8, 32]),
    scale=st.sampled_from([None, 0.3]),
    size=st.sampled_from([0.1, 1.0, 8.0]),  # with the last, scores are from -500 to 500
)
def test_the_answers_are_torchs(
    n_texts: int, length: int, n_heads: int, d: int, scale: float | None, size: float
) -> None:
    torch.manual_seed(length)
    # As the layers give them: side by side in one tensor.
    tensors = (size * torch.randn(n_texts * length, 3, n_heads, d)).unbind(1)
    want = torch.cat(
        [
            scaled_dot_product_attention(*(x.transpose(0, 1) for x in text), scale=scale).transpose(0, 1)
            for text in zip(*(x.split(length) for x in tensors), strict=True)
        ]
    )
    before = [x.clone() for x in tensors]
    found = blas_attention.one_by_one(tensors, n_texts, scale)
    torch.testing.assert_close(found, want, atol=1e-5 * max(1, size) ** 3, rtol=1e-4)
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True)), "the input is left as it was"


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_two_cannot_be_raised_to_have_their_answer(sign: int) -> None:
    tensors = torch.full((60, 2, 4), 1e3), torch.full((60, 2, 4), 1e3 * sign), torch.randn(60, 2, 4)
    found = blas_attention.one_by_one(tensors, 1, None)
    torch.testing.assert_close(found, tensors[2].mean(0, keepdim=True).expand_as(found), atol=1e-5, rtol=1e-4)


def test_a_text_that_is_not_finite_spoils_no_other() -> None:
    tensors = torch.randn(2 * 50, 3, 2, 4).unbind(1)
    for x in tensors:
        x[:50] = float("nan")
    found = blas_attention.one_by_one(tensors, 2, None)
    assert found[:50].isnan().all()
    assert found[50:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_long_texts_go_this_way_and_only_where_it_is_better(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []

    def spy(tensors: list[torch.Tensor], n_texts: int, scale: float | None) -> torch.Tensor:
        taken.append((len(tensors[0]), n_texts))
        return real(tensors, n_texts, scale)

    real = blas_attention.one_by_one
    monkeypatch.setattr(blas_attention, "one_by_one", spy)
    lengths = [3, 4, blas_attention.LONG - 1, blas_attention.LONG, WIDE, WIDE]
    tensors = [x.to(dtype) for x in torch.randn(sum(lengths), 3, 2, 8).unbind(1)]
    segments = packed_attention.segments(lengths, torch.empty(0))
    found = {}
    for better in (True, False):
        monkeypatch.setattr(blas_attention, "is_better", lambda b=better: b)
        found[better] = packed_attention.within(segments, tensors, None)
    assert taken == [(blas_attention.LONG, 1), (2 * WIDE, 2)]
    torch.testing.assert_close(found[True], found[False], atol=1e-5, rtol=1e-4)


def test_several_threads_share_a_texts_work_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas_attention, "_won", lambda: True)
    for threads, expected in ((2, False), (1, True)):
        torch.set_num_threads(threads)
        assert blas_attention.is_better() is expected


def test_the_trial_has_an_answer() -> None:
    assert blas_attention.is_better() in (True, False)


def test_numpy_gets_as_many_threads_as_torch() -> None:
    from threadpoolctl import threadpool_info

    set_up(1)
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
