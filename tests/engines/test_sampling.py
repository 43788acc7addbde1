"""Sampling: each row by its own wishes; what is drawn follows the distribution it should."""

from collections import Counter
from typing import Any

import pytest
import torch

from deployments.engines.sampling import Chooser, choose
from deployments.generation import Sampling

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))


def chooser(prompt: tuple[int, ...] = (), **wish: Any) -> Chooser:
    return Chooser(Sampling(max_tokens=1, **wish), prompt)


def drawn(n: int = 4000, **wish: Any) -> dict[int, float]:
    rows = [chooser(seed=i, **wish) for i in range(n)]
    tokens = Counter(choice.token for choice in choose(LOGITS.expand(n, -1), rows) if choice)
    return {token: count / n for token, count in tokens.items()}


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"temperature": 1.0}, {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}),
        ({"temperature": 1.0, "top_k": 2}, {0: 2 / 3, 1: 1 / 3}),
        ({"temperature": 1.0, "top_p": 0.6}, {0: 2 / 3, 1: 1 / 3}),
        ({"temperature": 1.0, "top_p": 0.4}, {0: 1.0}),
        ({"temperature": 0.5}, {0: 0.25 / 0.345, 1: 0.0625 / 0.345, 2: 0.0225 / 0.345, 3: 0.01 / 0.345}),
        ({"temperature": 0.0}, {0: 1.0}),
        ({"temperature": 1e-30}, {0: 1.0}),
    ],
)
def test_draws_follow_the_distribution(wish: dict[str, Any], expected: dict[int, float]) -> None:
    found = drawn(**wish)
    assert found.keys() == expected.keys()
    assert all(abs(found[token] - share) < 0.03 for token, share in expected.items())


def test_rows_of_different_wishes_share_a_batch() -> None:
    wide = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    rows = [chooser(temperature=0.0), chooser(temperature=1.0, seed=1), chooser(temperature=1.0, top_p=0.99, seed=1)]
    together = [choice and choice.token for choice in choose(wide, rows)]
    alone = [
        (choice and choice.token)
        for index, wish in enumerate(({"temperature": 0.0}, {"seed": 1}, {"top_p": 0.99, "seed": 1}))
        for choice in choose(wide[index : index + 1], [chooser(**wish)])
    ]
    assert together == alone
    assert together[0] == int(wide[0].argmax())


def test_a_top_k_beyond_all_bounds_is_the_whole_vocabulary() -> None:
    wishes = [{"top_k": 10**40, "seed": 1}, {"top_k": LOGITS.numel(), "seed": 1}]
    first, second = choose(LOGITS.expand(2, -1), [chooser(**wish) for wish in wishes])
    assert first == second


def test_penalties_and_biases_move_what_is_chosen_and_logprobs_stay_the_models_own() -> None:
    once = chooser(temperature=0.0, presence_penalty=2.0, logprobs=2)
    first, second = (choose(LOGITS[None], [once])[0] for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.token, second.token) == (0, 1)
    assert second.logprob == pytest.approx(float(LOGITS[1]), abs=1e-5)
    assert [token for token, _ in second.top] == [0, 1]
    seen = chooser(prompt=(0,), temperature=0.0, repetition_penalty=4.0)
    assert [c and c.token for c in choose(LOGITS[None], [seen])] == [1]
    pushed = chooser(temperature=0.0, logit_bias={3: 5.0})
    assert [c and c.token for c in choose(LOGITS[None], [pushed])] == [3]


def test_a_row_without_numbers_is_none_and_the_others_are_not() -> None:
    logits = torch.stack([LOGITS, torch.full((4,), float("nan")), LOGITS])
    found = choose(logits, [chooser(temperature=t, seed=0) for t in (0.0, 1.0, 1.0)])
    assert [choice is None for choice in found] == [False, True, False]
