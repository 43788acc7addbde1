"""Who goes first in a lane, who is refused and with what time to wait, and what a lane takes for a model's speed."""

import asyncio
from dataclasses import replace

import pytest
from forwarder_cases import MINILM, NEVER, Clock, Pool, busy, one_a_second, request, settle

from deployments.errors import DeadlineExceeded, Overloaded
from deployments.types import InferResult, Timings
from serve_app import lanes
from serve_app.forwarder import Forwarder


async def test_tenants_take_turns_and_priority_goes_first() -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    waiting = [*(("a", 0, f"a{i}") for i in range(4)), ("b", 0, "b0"), ("b", 0, "b1"), ("b", 1, "urgent")]
    tasks = []
    for tenant, priority, name in waiting:
        asked = replace(request(name), tenant=tenant, priority=priority)
        tasks.append(asyncio.create_task(forwarder.forward(MINILM, asked, NEVER)))
        await settle()
    pool.gate.set()
    await asyncio.gather(*tasks)
    assert pool.ids()[len(lanes.NEEDED) :] == [["urgent", "a0", "b0", "a1", "b1", "a2", "a3"]]


async def test_a_full_lane_gives_way_to_what_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    monkeypatch.setattr(lanes, "MAX_WAITING", 3)
    flood = [
        asyncio.create_task(forwarder.forward(MINILM, replace(request(f"a{i}"), tenant="a"), NEVER)) for i in range(3)
    ]
    await settle()
    other = asyncio.create_task(forwarder.forward(MINILM, replace(request("b"), tenant="b"), NEVER))
    await settle()
    pool.gate.set()
    first, second, last = await asyncio.gather(*flood, return_exceptions=True)
    assert isinstance(last, Overloaded)
    assert [r.model for r in (first, second) if isinstance(r, InferResult)] == ["a0", "a1"]
    assert (await other).model == "b"


async def test_request_that_cannot_be_answered_in_time_is_refused_with_the_wait() -> None:
    pool, clock = Pool(), Clock()
    forwarder = Forwarder(pool.send, clock)
    quick, pool.chunks = pool.chunks, one_a_second(pool, clock)  # type: ignore[method-assign,assignment]
    await asyncio.gather(*(forwarder.forward(MINILM, request(str(i)), NEVER) for i in range(10)))
    pool.chunks = quick  # type: ignore[method-assign]
    await busy(pool, forwarder)
    waiting = [asyncio.create_task(forwarder.forward(MINILM, request("w"), NEVER)) for _ in range(10)]
    await settle()
    with pytest.raises(Overloaded) as caught:
        await forwarder.forward(MINILM, request("late"), clock.now + 4.0)
    assert caught.value.retry_after_s == pytest.approx(sum(lanes.NEEDED) + 10 - 4.0)  # on board, waiting; a second each
    pool.gate.set()
    await asyncio.gather(*waiting)


async def test_who_was_late_is_told_how_long_what_is_here_still_takes() -> None:
    pool, clock = Pool(), Clock()
    forwarder = Forwarder(pool.send, clock)
    quick, pool.chunks = pool.chunks, one_a_second(pool, clock)  # type: ignore[method-assign,assignment]
    await asyncio.gather(*(forwarder.forward(MINILM, request(str(i)), NEVER) for i in range(10)))
    pool.chunks = quick  # type: ignore[method-assign]
    late = asyncio.create_task(forwarder.forward(MINILM, request("late"), clock.now + 0.01))
    await busy(pool, forwarder)
    with pytest.raises(DeadlineExceeded) as caught:
        await late
    assert caught.value.retry_after_s == pytest.approx(pool_size := sum(lanes.NEEDED), abs=1), pool_size
    pool.gate.set()


async def test_what_lone_requests_take_is_not_what_a_model_can_do() -> None:
    """Twenty of a second each, one after the other, then many at once: nobody is refused for it."""
    pool, clock = Pool(), Clock()
    forwarder = Forwarder(pool.send, clock)
    quick, pool.chunks = pool.chunks, one_a_second(pool, clock)  # type: ignore[method-assign,assignment]
    for i in range(20):
        await forwarder.forward(MINILM, request(str(i)), NEVER)
    pool.chunks = quick  # type: ignore[method-assign]
    await busy(pool, forwarder)
    waiting = [asyncio.create_task(forwarder.forward(MINILM, request("w"), clock.now + 4.0)) for _ in range(10)]
    await settle()
    pool.gate.set()
    await asyncio.gather(*waiting)


async def test_a_first_slow_answer_is_not_taken_for_the_speed() -> None:
    pool, clock = Pool(), Clock()
    forwarder = Forwarder(pool.send, clock)
    pool.chunks = one_a_second(pool, clock)  # type: ignore[method-assign,assignment]
    await asyncio.gather(*(forwarder.forward(MINILM, request(str(i)), NEVER) for i in range(3)))
    assert next(iter(forwarder._lanes.values()))._s_per_request == 0.0


async def test_a_load_says_nothing_of_the_models_speed() -> None:
    pool, clock = Pool(), Clock()
    forwarder = Forwarder(pool.send, clock)
    pool.answer = lambda r: InferResult(r.request_id, "1", {}, timings=Timings(load_s=20.0))  # type: ignore[method-assign]
    pool.gate.clear()
    first = asyncio.create_task(forwarder.forward(MINILM, request("first"), NEVER))
    await settle()
    lane = next(iter(forwarder._lanes.values()))
    clock.now = 20.0
    pool.gate.set()
    await first
    assert lane._s_per_request == 0.0
