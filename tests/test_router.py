"""Which replica gets a model, how many replicas there should be, and what a pool says as a whole."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import pytest
import virtual_time
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.config import AutoscalingContext
from ray.serve.request_router import PendingRequest

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


POOL = DeploymentID("Pool", "p")
HANDLE = DeploymentHandleSource.REPLICA


class Fake:
    """A replica as Serve's router sees it: says how many calls it has, or does not answer."""

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, POOL)
        self.max_ongoing_requests = 4
        self.n_calls = 0
        self.error: Exception | None = None
        self.answers_after_s = 0.0
        self.n_asked = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.n_asked += 1
        await asyncio.sleep(self.answers_after_s)
        if self.error is not None:
            raise self.error
        return self.n_calls


def fakes(*names: str) -> list[Any]:
    return [Fake(name) for name in names]


def pending(key: str = "m:1", copy: int = 0) -> PendingRequest:
    metadata = RequestMetadata(uuid4().hex, uuid4().hex, multiplexed_model_id=key)
    return PendingRequest([], {"copy": copy}, metadata)


def router() -> ModelRouter:
    """Return Serve's own router with our choice, on the running loop's clock."""
    clock = asyncio.get_running_loop().time
    made = ModelRouter(POOL, HANDLE, use_replica_queue_len_cache=True, get_curr_time_s=clock)
    made.initialize_state()
    return made


async def chosen(made: ModelRouter, replicas: list[Any], key: str = "m:1", copy: int = 0) -> list[str]:
    """Return the ids in the order in which Serve tries them; each rank holds one, but the last, of the taken ones."""
    *ranks, taken = await made.choose_replicas(replicas, pending(key, copy))
    assert all(len(one) == 1 for one in ranks)
    assert not taken
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
    assert await router().choose_replicas(replicas, pending("")) == [replicas]
    assert await router().choose_replicas(replicas) == [replicas]


class Handle:
    """Serve's router in virtual time over fake replicas, in the order of the model `m:1`."""

    def __init__(self, names: Sequence[str] = "abc") -> None:
        self.router = router()
        by_name = {name: Fake(name) for name in names}
        self.order = [by_name[name] for name in rank("m:1", list(names))]
        self.router.update_replicas(cast(Any, self.order))

    async def call(self) -> tuple[Fake, float]:
        """Return who gets a call, and the seconds it took to find out."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await self.router._choose_replica_for_request(pending())
        self.router.on_send_request(found.replica_id)
        cast(Any, found).n_calls += 1
        return cast(Fake, found), loop.time() - began


def test_a_full_holder_passes_its_calls_on_without_being_asked() -> None:
    async def main() -> None:
        handle = Handle()
        await asyncio.sleep(1)
        home, second, third = handle.order
        home.answers_after_s = 30.0  # so busy that it would not even say so
        asked = home.n_asked
        got = [await handle.call() for _ in range(12)]
        assert [who for who, _ in got] == [home] * 4 + [second] * 4 + [third] * 4
        assert max(seconds for _, seconds in got) == 0.0
        assert home.n_asked == asked

    virtual_time.run(main)


def test_when_all_are_full_the_first_one_that_has_room_gets_the_call() -> None:
    async def main() -> None:
        handle = Handle()
        await asyncio.sleep(1)
        for _ in range(12):
            await handle.call()
        last = handle.order[2]
        waiting = asyncio.create_task(handle.call())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        last.n_calls = 1
        found, seconds = await waiting
        assert found is last
        assert seconds < 1.0

    virtual_time.run(main)


@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnavailableError("gone", b"x" * 16)])
def test_a_dead_holder_delays_no_call(error: Exception) -> None:
    async def main() -> None:
        handle = Handle()
        await asyncio.sleep(1)
        home, second, _ = handle.order
        assert (await handle.call())[0] is home
        home.error = error
        handle.router.on_replica_actor_unavailable(home.replica_id)  # what Serve makes of a call that broke
        home.answers_after_s = 30.0
        got = [await handle.call() for _ in range(3)]
        assert {who for who, _ in got} == {second}
        assert max(seconds for _, seconds in got) == 0.0

    virtual_time.run(main)


def test_a_holder_that_can_be_reached_again_gets_its_calls_back() -> None:
    async def main() -> None:
        handle = Handle()
        await asyncio.sleep(1)
        home = handle.order[0]
        handle.router.on_replica_actor_unavailable(home.replica_id)
        assert (await handle.call())[0] is handle.order[1]
        await asyncio.sleep(2)
        assert (await handle.call())[0] is home

    virtual_time.run(main)
