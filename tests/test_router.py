"""Which replica gets a model, how many replicas there should be, and what a pool says as a whole."""

from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.config import AutoscalingContext

from deployments.autoscaling import waiting_work
from deployments.catalog import merge
from deployments.router import ModelRouter, rank
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


@dataclass(frozen=True)
class FakeId:
    unique_id: str


@dataclass(frozen=True)
class FakeReplica:
    replica_id: FakeId


@dataclass
class Metadata:
    multiplexed_model_id: str


@dataclass
class RoutingContext:
    should_backoff: bool = False


class Pending:
    def __init__(self, key: str, copy: int = 0) -> None:
        self.metadata = Metadata(key)
        self.kwargs = {"copy": copy}
        self.routing_context = RoutingContext()


def router() -> ModelRouter:
    made = object.__new__(ModelRouter)  # its base wants a running Serve; the choice needs none
    made.initialize_state()
    return made


def fakes(*names: str) -> list[Any]:
    return [FakeReplica(FakeId(name)) for name in names]


async def chosen(made: ModelRouter, replicas: list[Any], key: str = "m:1", copy: int = 0) -> list[str]:
    """Return the ids in the order in which Serve tries them; each rank holds one."""
    ranks = await made.choose_replicas(replicas, cast(Any, Pending(key, copy)))
    assert all(len(one) == 1 for one in ranks)
    return [one[0].replica_id.unique_id for one in ranks]


async def test_every_replica_is_tried_in_the_models_order_from_the_copy_that_is_meant() -> None:
    made, names = router(), ["a", "b", "c", "d"]
    order = rank("m:1", names)
    assert await chosen(made, fakes(*names)) == order
    assert await chosen(made, fakes(*reversed(names))) == order
    assert await chosen(made, fakes(*names), copy=1) == order[1:] + order[:1]
    assert await chosen(made, fakes(*names), copy=6) == order[2:] + order[:2]


async def test_a_replica_that_is_gone_is_not_tried_and_one_that_came_is() -> None:
    made, names = router(), ["a", "b", "c"]
    first = (await chosen(made, fakes(*names)))[0]
    left = [name for name in names if name != first]
    assert await chosen(made, fakes(*left)) == rank("m:1", left)
    assert set(await chosen(made, fakes(*names, "new"))) == {*names, "new"}
    assert await chosen(made, fakes()) == []


async def test_a_call_for_no_model_may_go_anywhere() -> None:
    replicas = fakes("a", "b")
    assert await router().choose_replicas(replicas, cast(Any, Pending(""))) == [replicas]
    assert await router().choose_replicas(replicas) == [replicas]
