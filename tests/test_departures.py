"""Departures: the pool is told of callers who leave a call that goes on for others."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from forwarder_cases import MINILM, NEVER, Clock, Pool, request, settle

from deployments.errors import DeadlineExceeded, PoolUnavailable
from deployments.types import InferResult
from serve_app.forwarder import Forwarder


async def test_who_leaves_a_shared_call_is_told_to_the_pool_with_all_who_leave_at_once() -> None:
    pool, told = Pool(), []

    async def tell(name: str, sender: str, calls: Mapping[int, Sequence[int]]) -> None:
        told.append((name, sender, {number: list(indices) for number, indices in calls.items()}))

    pool.gate.clear()
    forwarder = Forwarder(pool.send, tell=tell)
    tasks = [asyncio.create_task(forwarder.forward(MINILM, request(str(n)), NEVER)) for n in range(8)]
    await settle()
    [call] = pool.calls
    for task in tasks[2:5]:
        task.cancel()
    await settle()
    assert told == [("pool", call.sender, {call.number: [2, 3, 4]})]
    pool.gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, InferResult) for one in done] == [True] * 2 + [False] * 3 + [True] * 3
    assert len(told) == 1


async def test_nobody_is_told_of_who_left_last_came_too_late_or_was_answered() -> None:
    pool, told, clock = Pool(), [], Clock()

    async def tell(name: str, sender: str, calls: Mapping[int, Sequence[int]]) -> None:
        told.append(calls)

    pool.gate.clear()
    forwarder = Forwarder(pool.send, clock, tell=tell)
    alone = asyncio.create_task(forwarder.forward(MINILM, request("alone"), NEVER))
    await settle()
    alone.cancel()
    await settle()
    late = [asyncio.create_task(forwarder.forward(MINILM, request("late"), after)) for after in (0.02, NEVER)]
    await asyncio.sleep(0.1)
    with pytest.raises(DeadlineExceeded):
        await late[0]
    pool.gate.set()
    await late[1]
    assert told == []


async def test_a_pool_that_cannot_be_told_harms_nobody() -> None:
    async def tell(name: str, sender: str, calls: Mapping[int, Sequence[int]]) -> None:
        raise PoolUnavailable("gone")

    pool = Pool()
    pool.gate.clear()
    forwarder = Forwarder(pool.send, tell=tell)
    tasks = [asyncio.create_task(forwarder.forward(MINILM, request(str(n)), NEVER)) for n in range(2)]
    await settle()
    tasks[0].cancel()
    await settle()
    pool.gate.set()
    assert (await tasks[1]).model == "1"
