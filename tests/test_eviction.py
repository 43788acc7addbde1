"""Who is evicted: few loads where popularity stays, no more than LRU's where it does not, and no debt to the past."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_residency import spec

from benchmarks.eviction_sim import belady, loads_a_hundred, lru, ours, popular
from deployments.room import Uses, first_to_go
from deployments.slot import Slot


def test_zipfs_popularity_takes_few_more_loads_than_knowing_it() -> None:
    found = {policy: loads_a_hundred("zipf", policy, 100, 20, 2000, 4) for policy in ("ours", "popular", "lru")}
    assert found["ours"] < 0.8 * found["lru"]
    assert found["ours"] < 1.1 * found["popular"]


@pytest.mark.parametrize("pattern", ["shifting", "drifting", "bursts", "scans"])
def test_other_patterns_take_fewer_loads_than_lru(pattern: str) -> None:
    assert loads_a_hundred(pattern, "ours", 100, 20, 2000, 4) < 0.97 * loads_a_hundred(pattern, "lru", 100, 20, 2000, 4)


@given(st.lists(st.integers(0, 9), max_size=100), st.integers(1, 10))
def test_no_policy_loads_less_than_belady_nor_more_than_once_a_request(requests: list[int], room: int) -> None:
    best = sum(belady(requests, room))
    for policy in (ours, lru, popular):
        loads = policy(requests, room)
        assert len(set(requests)) <= best <= sum(loads) <= len(requests)


def slots(n: int) -> tuple[list[Slot[None]], Uses]:
    made = [Slot[None](spec(f"m{i}"), size_bytes=1, load_s=1.0) for i in range(n)]
    return made, Uses(made)


def test_a_model_that_was_asked_for_a_thousand_times_is_not_kept_for_it_for_ever() -> None:
    (once_hot, *rest), uses = slots(5)
    for _ in range(1000):
        uses.note(once_hot)
    for _ in range(20):
        for slot in rest:
            uses.note(slot)
    assert first_to_go([once_hot, *rest], (), uses) is once_hot


def test_of_models_used_once_the_first_leaves_first() -> None:
    made, uses = slots(4)
    for slot in made:
        uses.note(slot)
    assert first_to_go(made[::-1], (), uses) is made[0]


def test_costly_reloads_stay_and_large_models_go() -> None:
    (cheap, costly, large), uses = slots(3)
    costly.load_s, large.size_bytes = 3.0, 3
    for slot in (costly, large, cheap):
        uses.note(slot)
    assert first_to_go([cheap, costly, large], (), uses) is large
    assert first_to_go([cheap, costly], (), uses) is cheap


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200))
def test_shares_stay_sensible_whatever_happened(requests: list[int]) -> None:
    made, uses = slots(5)
    for i in requests:
        uses.note(made[i])
    shares = [uses.share(slot) for slot in made]
    assert all(0 <= share <= 1 for share in shares)
    assert np.isfinite(shares).all()
