"""Which replica gets a model, how many replicas there should be, and what a pool says as a whole."""

from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.config import AutoscalingContext

from deployments.autoscaling import waiting_work
from deployments.catalog import merge
from deployments.router import rank
from deployments.types import ModelState, ModelStatus, PoolStatus, Signature, Task

REPLICAS = st.lists(st.text("abcdef0123456789", min_size=4, max_size=8), min_size=2, max_size=12, unique=True)


@given(st.text(max_size=20), REPLICAS, st.randoms())
def test_every_caller_finds_the_same_order(key: str, replicas: list[str], random: Any) -> None:
    shuffled = list(replicas)
    random.shuffle(shuffled)
    assert rank(key, replicas) == rank(key, shuffled)
    assert sorted(rank(key, replicas)) == sorted(replicas)


@given(st.text(max_size=20), REPLICAS)
def test_a_replica_that_leaves_moves_nobody_else(key: str, replicas: list[str]) -> None:
    order = rank(key, replicas)
    for gone in replicas:
        assert rank(key, [r for r in replicas if r != gone]) == [r for r in order if r != gone]


def test_models_spread_evenly() -> None:
    replicas = [f"r{i}" for i in range(8)]
    firsts = [rank(f"model-{i}:1", replicas)[0] for i in range(4000)]
    assert all(350 < firsts.count(r) < 650 for r in replicas)


@dataclass
class Context:
    aggregated_metrics: dict[str, dict[str, float]] | None
    target_num_replicas: int = 1
    total_num_requests: float = 0.0
    policy_state: Any = None


@pytest.mark.parametrize(
    ("context", "wanted"),
    [
        (Context({"waiting_s": {"a": 0.0}}), 1),
        (Context({"waiting_s": {"a": 0.4}}), 1),
        (Context({"waiting_s": {"a": 1.2, "b": 0.2}}), 3),
        (Context(None, target_num_replicas=2), 2),
        (Context({}, target_num_replicas=0, total_num_requests=3.0), 1),
        (Context({}, target_num_replicas=0), 0),
    ],
)
def test_replicas_follow_the_work_that_waits(context: Context, wanted: int) -> None:
    assert waiting_work(cast(AutoscalingContext, context))[0] == wanted


def status(state: ModelState) -> PoolStatus:
    model = ModelStatus("m", "1", Task.TENSOR, Signature((), ()), state, False, 30.0)
    return PoolStatus((model,), {"x:1": "why"}, 1, resident_bytes=5, budget_bytes=10)


def test_a_pool_speaks_for_its_furthest_replica() -> None:
    merged = merge([status(ModelState.UNAVAILABLE), status(ModelState.READY), status(ModelState.LOADING)])
    assert merged.models[0].state is ModelState.READY
    assert (merged.n_replicas, merged.resident_bytes, merged.budget_bytes) == (3, 15, 30)
    assert merged.rejected == {"x:1": "why"}
    assert merge([]).n_replicas == 0
