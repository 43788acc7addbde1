"""Forwarder: who shares a call, what each request gets from it, and what one caller's leaving does to the others."""

import asyncio
import gc
import weakref

import pytest
import virtual_time
from forwarder_cases import MINILM, NEVER, Clock, Pool, busy, request, settle

from deployments.errors import DeadlineExceeded, InvalidInput, Overloaded, PoolUnavailable, ReplicaLost, ServeError
from deployments.types import InferResult
from serve_app import forwarder as forwarder_module
from serve_app import lanes
from serve_app.forwarder import Forwarder
from serve_app.lanes import GATHER_S, MAX_REQUESTS, Call, Outcomes, Target


async def test_an_idle_lane_sends_at_once() -> None:
    pool = Pool()
    result = await Forwarder(pool.send).forward(MINILM, request("a"), NEVER)
    assert result.model == "a"
    assert pool.ids() == [["a"]]


async def test_requests_that_wait_together_share_a_call() -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    first = await busy(pool, forwarder)
    rest = [asyncio.create_task(forwarder.forward(MINILM, request(n), NEVER)) for n in "abcd"]
    await settle()
    pool.gate.set()
    assert [r.model for r in await asyncio.gather(*rest)] == list("abcd")
    assert pool.ids()[len(lanes.NEEDED) :] == [list("abcd")]
    await asyncio.gather(*first)


async def test_models_do_not_share_calls() -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    other = asyncio.create_task(forwarder.forward(Target("pool", "other:1"), request("x"), NEVER))
    await settle()
    assert pool.ids()[-1] == ["x"]
    pool.gate.set()
    await other


async def test_a_call_is_bounded_in_requests_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_CALL_BYTES", 1000)
    pool = Pool()
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    big = [asyncio.create_task(forwarder.forward(MINILM, request("b", 900), NEVER)) for _ in range(2)]
    small = [asyncio.create_task(forwarder.forward(MINILM, request("s"), NEVER)) for _ in range(MAX_REQUESTS + 5)]
    await settle()
    pool.gate.set()
    await asyncio.gather(*big, *small)
    sizes = [len(call.requests) for call in pool.calls[len(lanes.NEEDED) :]]
    assert sizes[0] == 1
    assert max(sizes) <= MAX_REQUESTS


async def test_each_request_gets_its_own_outcome() -> None:
    pool = Pool()
    pool.refused["b"] = InvalidInput("bad", field="text")
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    tasks = [asyncio.create_task(forwarder.forward(MINILM, request(n), NEVER)) for n in "abc"]
    await settle()
    pool.gate.set()
    a, b, c = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(b, InvalidInput)
    assert isinstance(a, InferResult)
    assert isinstance(c, InferResult)


async def test_cancel_the_first_of_sixteen_and_fifteen_answer() -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    tasks = [asyncio.create_task(forwarder.forward(MINILM, request(str(i)), NEVER)) for i in range(16)]
    await settle()
    pool.gate.set()
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [r.model for r in results[1:] if isinstance(r, InferResult)] == [str(i) for i in range(1, 16)]


async def test_a_call_whose_last_caller_left_is_cancelled() -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    task, other, *_ = await busy(pool, forwarder)
    task.cancel()
    await settle()
    assert pool.n_cancelled == 1
    pool.gate.set()
    assert (await other).model == "busy"


async def test_a_request_that_left_while_waiting_is_never_sent() -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    gone = asyncio.create_task(forwarder.forward(MINILM, request("gone"), NEVER))
    await settle()
    gone.cancel()
    await settle()
    pool.gate.set()
    await forwarder.forward(MINILM, request("kept"), NEVER)
    assert not any("gone" in ids for ids in pool.ids())


async def test_nothing_hangs_past_its_deadline() -> None:
    pool = Pool()
    pool.gate.clear()
    clock = Clock()
    forwarder = Forwarder(pool.send, clock)
    with pytest.raises(DeadlineExceeded):
        await forwarder.forward(MINILM, request("a"), 0.01)
    await settle()
    assert pool.n_cancelled == 1


async def test_the_time_left_travels_with_each_request() -> None:
    pool, clock = Pool(), Clock()
    forwarder = Forwarder(pool.send, clock)
    await busy(pool, forwarder)
    task = asyncio.create_task(forwarder.forward(MINILM, request("a"), 10.0))
    await settle()
    clock.now = 4.0
    pool.gate.set()
    await task
    assert pool.calls[-1].timeouts_s == [pytest.approx(6.0)]


async def test_a_call_lost_with_its_replica_is_sent_once_more() -> None:
    pool = Pool()
    pool.failures = [ReplicaLost("gone")]
    assert (await Forwarder(pool.send).forward(MINILM, request("a"), NEVER)).model == "a"
    assert pool.ids() == [["a"], ["a"]]


def test_a_second_call_waits_for_company_for_a_moment_only() -> None:
    """What the first waits for may be its own affair: nobody waits as long as it does."""

    async def play() -> None:
        pool, clock = Pool(), asyncio.get_running_loop().time
        pool.gate.clear()
        forwarder = Forwarder(pool.send, clock)
        tasks = [asyncio.create_task(forwarder.forward(MINILM, request("slow"), NEVER))]
        await asyncio.sleep(1.0)
        for name in "ab":
            tasks.append(asyncio.create_task(forwarder.forward(MINILM, request(name), NEVER)))
            await asyncio.sleep(GATHER_S / 4)
        assert pool.ids() == [["slow"]]
        await asyncio.sleep(GATHER_S)
        assert pool.ids() == [["slow"], ["a", "b"]]
        pool.gate.set()
        await asyncio.gather(*tasks)

    virtual_time.run(play)


async def test_a_call_lost_twice_is_a_503() -> None:
    pool = Pool()
    pool.failures = [ReplicaLost("gone"), ReplicaLost("gone again")]
    with pytest.raises(PoolUnavailable, match="gone again"):
        await Forwarder(pool.send).forward(MINILM, request("a"), NEVER)
    assert len(pool.calls) == 2


async def test_an_unexpected_failure_is_hidden_and_the_lane_goes_on() -> None:
    pool = Pool()
    pool.failures = [RuntimeError("secret")]
    forwarder = Forwarder(pool.send)
    with pytest.raises(ServeError, match="internal"):
        await forwarder.forward(MINILM, request("a"), NEVER)
    assert (await forwarder.forward(MINILM, request("b"), NEVER)).model == "b"


async def test_too_many_waiting_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    monkeypatch.setattr(lanes, "MAX_WAITING", 3)
    tasks = [asyncio.create_task(forwarder.forward(MINILM, request("a"), NEVER)) for _ in range(3)]
    await settle()
    with pytest.raises(Overloaded):
        await forwarder.forward(MINILM, request("b"), NEVER)
    pool.gate.set()
    await asyncio.gather(*tasks)


async def test_an_answered_request_is_let_go_at_once() -> None:
    """Requests and answers may hold megabytes: they must not wait for the garbage collector."""
    pool = Pool()
    forwarder = Forwarder(pool.send)
    gc.collect()
    gc.disable()
    try:
        one = request("r1")
        gone = weakref.ref(one.inputs["x"])
        await forwarder.forward(MINILM, one, NEVER)
        del one
        pool.calls.clear()
        await settle()
        assert gone() is None
    finally:
        gc.enable()


async def test_a_second_call_leaves_for_several_and_a_further_one_only_for_many() -> None:
    pool = Pool()
    pool.gate.clear()
    forwarder = Forwarder(pool.send, Clock())
    tasks = []
    for i in range(sum(lanes.NEEDED) + 5):
        tasks.append(asyncio.create_task(forwarder.forward(MINILM, request(str(i)), NEVER)))
        await settle()
    assert [len(call.requests) for call in pool.calls] == list(lanes.NEEDED)
    pool.gate.set()
    await asyncio.gather(*tasks)


async def test_outcomes_do_not_wait_for_the_rest_of_their_call() -> None:
    pool = Pool()
    rest = asyncio.Event()

    async def send(call: Call) -> Outcomes:
        yield [(1, pool.answer(call.requests[1]))]
        await rest.wait()
        yield [(0, pool.answer(call.requests[0]))]

    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    forwarder._send = send
    slow, fast = (asyncio.create_task(forwarder.forward(MINILM, request(n), NEVER)) for n in ("slow", "fast"))
    await settle()
    pool.gate.set()
    assert (await fast).model == "fast"
    assert not slow.done()
    rest.set()
    assert (await slow).model == "slow"


async def test_only_what_was_not_answered_is_sent_again() -> None:
    pool = Pool()
    losses = [ReplicaLost("gone")]

    async def send(call: Call) -> Outcomes:
        pool.calls.append(call)
        await pool.gate.wait()
        if losses and len(call.requests) == 3:
            yield [(0, pool.answer(call.requests[0]))]
            raise losses.pop()
        yield pool.chunks(call)[0]

    forwarder = Forwarder(send)
    await busy(pool, forwarder)
    tasks = [asyncio.create_task(forwarder.forward(MINILM, request(n), NEVER)) for n in "abc"]
    await settle()
    pool.gate.set()
    assert [r.model for r in await asyncio.gather(*tasks)] == list("abc")
    assert pool.ids()[-2:] == [list("abc"), list("bc")]


async def test_a_replica_that_leaves_requests_unanswered_counts_as_lost() -> None:
    pool = Pool()

    async def send(call: Call) -> Outcomes:
        pool.calls.append(call)
        for some in pool.chunks(call) if len(pool.calls) == 2 else []:
            yield some

    assert (await Forwarder(send).forward(MINILM, request("a"), NEVER)).model == "a"
    assert len(pool.calls) == 2


async def test_idle_lanes_are_forgotten_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "_MANY_LANES", 10)
    pool = Pool()
    forwarder = Forwarder(pool.send)
    for i in range(50):
        await forwarder.forward(Target("pool", f"m{i}:1"), request("a"), NEVER)
    assert len(forwarder._lanes) <= 11
