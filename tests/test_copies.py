"""Copies of hot models and loads of cold ones: which replicas a lane asks, and who waits for a load."""

import asyncio

import pytest
from forwarder_cases import NEVER, Clock, Pool, busy, request, settle

from deployments.errors import ModelUnavailable, PoolUnavailable
from deployments.types import InferResult
from serve_app import lanes
from serve_app.forwarder import Forwarder
from serve_app.lanes import Call, Outcomes, Target


async def test_a_pinned_model_uses_all_replicas() -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    target = Target("pool", "minilm:1", n_replicas=3, is_everywhere=True)
    pool.gate.clear()
    tasks = [asyncio.create_task(forwarder.forward(target, request(str(i)), NEVER)) for i in range(3)]
    await settle()
    pool.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(call.copy for call in pool.calls) == [0, 1, 2]


async def test_a_hot_model_earns_a_copy_and_a_quiet_one_loses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "COPY_REQUESTS", 4)
    monkeypatch.setattr(lanes, "NEEDED", (1, 1))
    pool, clock = Pool(), Clock()
    forwarder = Forwarder(pool.send, clock)
    target = Target("pool", "m:1", n_replicas=2)
    tasks = await busy(pool, forwarder, target)
    assert {call.copy for call in pool.calls} == {0}
    tasks += [asyncio.create_task(forwarder.forward(target, request("x"), NEVER)) for _ in range(5)]
    await settle()
    assert {call.copy for call in pool.calls} == {0, 1}
    pool.gate.set()
    await asyncio.gather(*tasks)
    clock.now = 60.0
    await forwarder.forward(target, request("y"), NEVER)
    await busy(pool, forwarder, target)
    assert {call.copy for call in pool.calls[-len(lanes.NEEDED) :]} == {0}
    pool.gate.set()


async def hot(pool: Pool, forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Task[InferResult]]:
    """Let so much wait for a model of three replicas that it earns a second copy."""
    monkeypatch.setattr(lanes, "COPY_REQUESTS", 4)
    monkeypatch.setattr(lanes, "NEEDED", (1, 1))
    target = Target("pool", "minilm:1", n_replicas=3)
    tasks = await busy(pool, forwarder, target)
    tasks += [asyncio.create_task(forwarder.forward(target, request(f"r{i}"), NEVER)) for i in range(5)]
    await settle()
    return tasks


async def test_a_copy_is_loaded_before_it_gets_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    tasks = await hot(pool, Forwarder(pool.send), monkeypatch)
    assert [(call.copy, len(call.requests)) for call in pool.calls] == [(0, 1), (0, 1), (1, 0)]
    pool.gate.set()
    await asyncio.gather(*tasks)
    assert sum(len(call.requests) for call in pool.calls) == len(tasks)


async def test_a_copy_that_cannot_load_gets_no_request_and_is_not_tried_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = Pool()

    async def send(call: Call) -> Outcomes:
        async for some in pool.send(call):
            yield some
        if call.copy:
            raise PoolUnavailable("no room")

    tasks = await hot(pool, Forwarder(send, Clock()), monkeypatch)
    pool.gate.set()
    await asyncio.gather(*tasks)
    assert [call.copy for call in pool.calls if call.requests and call.copy] == []
    assert len([call for call in pool.calls if not call.requests]) == 1


async def test_no_more_requests_wait_for_a_load_than_may() -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    cold = Target("pool", "minilm:1", max_held=3, load_s=2.5)
    pool.gate.clear()
    held = [asyncio.create_task(forwarder.forward(cold, request(f"r{i}"), NEVER)) for i in range(3)]
    await settle()
    with pytest.raises(ModelUnavailable, match="3 requests wait for it already") as caught:
        await forwarder.forward(cold, request("late"), NEVER)
    assert caught.value.retry_after_s == 2.5
    loaded = asyncio.create_task(forwarder.forward(Target("pool", "minilm:1"), request("warm"), NEVER))
    pool.gate.set()
    await asyncio.gather(*held, loaded)
    await forwarder.forward(cold, request("again"), NEVER)
