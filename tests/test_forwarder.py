"""Forwarder: who shares a call, what each request gets from it, and what one caller's leaving does to the others."""

import asyncio
import gc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest

from deployments.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelUnavailable,
    Overloaded,
    PoolUnavailable,
    ReplicaLost,
    ServeError,
)
from deployments.types import InferRequest, InferResult, Outcome
from serve_app import forwarder as module
from serve_app.forwarder import MAX_IN_FLIGHT, MAX_REQUESTS, Call, Forwarder, Target

NEVER = 1e9
MINILM = Target("pool", "minilm:1")


def request(name: str, size: int = 1) -> InferRequest:
    return InferRequest("minilm", {"x": np.zeros(size, np.uint8)}, request_id=name)


class Pool:
    """Answers each request with its own id; holds calls until `gate` opens; fails as told."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.refused: dict[str, ServeError] = {}
        self.n_cancelled = 0

    async def send(self, call: Call) -> Sequence[Outcome]:
        self.calls.append(call)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        if self.failures:
            raise self.failures.pop(0)
        return [self.refused.get(r.request_id) or InferResult(r.request_id, "1", {}) for r in call.requests]

    def ids(self) -> list[list[str]]:
        return [[r.request_id for r in call.requests] for call in self.calls]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def busy(pool: Pool, forwarder: Forwarder, target: Target = MINILM) -> list[asyncio.Task[InferResult]]:
    """Fill the lane so that what comes next has to gather."""
    pool.gate.clear()
    tasks = []
    for i in range(MAX_IN_FLIGHT):
        tasks.append(asyncio.create_task(forwarder.forward(target, request(f"busy{i}"), NEVER)))
        await settle()
    return tasks


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
    assert pool.ids()[MAX_IN_FLIGHT:] == [list("abcd")]
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
    monkeypatch.setattr(module, "MAX_CALL_BYTES", 1000)
    pool = Pool()
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    big = [asyncio.create_task(forwarder.forward(MINILM, request("b", 900), NEVER)) for _ in range(2)]
    small = [asyncio.create_task(forwarder.forward(MINILM, request("s"), NEVER)) for _ in range(MAX_REQUESTS + 5)]
    await settle()
    pool.gate.set()
    await asyncio.gather(*big, *small)
    sizes = [len(call.requests) for call in pool.calls[MAX_IN_FLIGHT:]]
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
    [task, other] = await busy(pool, forwarder)
    task.cancel()
    await settle()
    assert pool.n_cancelled == 1
    pool.gate.set()
    assert (await other).model == "busy1"


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
    assert pool.calls[-1].requests[0].timeout_s == pytest.approx(6.0)


async def test_a_call_lost_with_its_replica_is_sent_once_more() -> None:
    pool = Pool()
    pool.failures = [ReplicaLost("gone")]
    assert (await Forwarder(pool.send).forward(MINILM, request("a"), NEVER)).model == "a"
    assert pool.ids() == [["a"], ["a"]]


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
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    pool = Pool()
    forwarder = Forwarder(pool.send)
    await busy(pool, forwarder)
    tasks = [asyncio.create_task(forwarder.forward(MINILM, request("a"), NEVER)) for _ in range(3)]
    await settle()
    with pytest.raises(Overloaded):
        await forwarder.forward(MINILM, request("b"), NEVER)
    pool.gate.set()
    await asyncio.gather(*tasks)


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
    monkeypatch.setattr(module, "COPY_REQUESTS", 4)
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
    assert {call.copy for call in pool.calls[-MAX_IN_FLIGHT:]} == {0}
    pool.gate.set()


async def hot(pool: Pool, forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Task[InferResult]]:
    """Let so much wait for a model of three replicas that it earns a second copy."""
    monkeypatch.setattr(module, "COPY_REQUESTS", 4)
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

    async def send(call: Call) -> Sequence[Outcome]:
        outcomes = await pool.send(call)
        if call.copy:
            raise PoolUnavailable("no room")
        return outcomes

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
