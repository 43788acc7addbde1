"""Forwarder: who shares a call, what each request gets from it, and what one caller's leaving does to the others."""

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import virtual_time

from deployments.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelUnavailable,
    Overloaded,
    PoolUnavailable,
    ReplicaLost,
    ServeError,
)
from deployments.types import InferRequest, InferResult, Outcome, Timings
from serve_app import forwarder as forwarder_module
from serve_app import lanes
from serve_app.forwarder import Forwarder
from serve_app.lanes import GATHER_S, MAX_REQUESTS, NEEDED, Call, Outcomes, Target

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

    async def send(self, call: Call) -> Outcomes:
        self.calls.append(call)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        if self.failures:
            raise self.failures.pop(0)
        for some in self.chunks(call):
            yield some

    def chunks(self, call: Call) -> list[list[tuple[int, Outcome]]]:
        return [[(i, self.answer(request)) for i, request in enumerate(call.requests)]]

    def answer(self, request: InferRequest) -> Outcome:
        return self.refused.get(request.request_id) or InferResult(request.request_id, "1", {})

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
    """Fill the lane so that what comes next has to gather: as many calls as may be out."""
    pool.gate.clear()
    tasks = []
    for n_needed in NEEDED:
        tasks += [asyncio.create_task(forwarder.forward(target, request("busy"), NEVER)) for _ in range(n_needed)]
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
    assert pool.ids()[len(NEEDED) :] == [list("abcd")]
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
    sizes = [len(call.requests) for call in pool.calls[len(NEEDED) :]]
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
    monkeypatch.setattr(sys.modules[__name__], "NEEDED", (1, 1))
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
    assert {call.copy for call in pool.calls[-len(NEEDED) :]} == {0}
    pool.gate.set()


async def hot(pool: Pool, forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Task[InferResult]]:
    """Let so much wait for a model of three replicas that it earns a second copy."""
    monkeypatch.setattr(lanes, "COPY_REQUESTS", 4)
    monkeypatch.setattr(lanes, "NEEDED", (1, 1))
    monkeypatch.setattr(sys.modules[__name__], "NEEDED", (1, 1))
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
    for i in range(sum(NEEDED) + 5):
        tasks.append(asyncio.create_task(forwarder.forward(MINILM, request(str(i)), NEVER)))
        await settle()
    assert [len(call.requests) for call in pool.calls] == list(NEEDED)
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
    assert pool.ids()[len(NEEDED) :] == [["urgent", "a0", "b0", "a1", "b1", "a2", "a3"]]


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
    assert caught.value.retry_after_s == pytest.approx(sum(NEEDED) + 10 - 4.0)  # on board, waiting; a second each
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
    assert caught.value.retry_after_s == pytest.approx(pool_size := sum(NEEDED), abs=1), pool_size
    pool.gate.set()


def one_a_second(pool: Pool, clock: Clock) -> Callable[[Call], Iterator[list[tuple[int, Outcome]]]]:
    """Return what, in place of a pool's `chunks`, answers the requests of a call one by one."""

    def chunks(call: Call) -> Iterator[list[tuple[int, Outcome]]]:
        for i, asked in enumerate(call.requests):
            clock.now += 1.0
            yield [(i, pool.answer(asked))]

    return chunks


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


async def test_idle_lanes_are_forgotten_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "_MANY_LANES", 10)
    pool = Pool()
    forwarder = Forwarder(pool.send)
    for i in range(50):
        await forwarder.forward(Target("pool", f"m{i}:1"), request("a"), NEVER)
    assert len(forwarder._lanes) <= 11


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


class Replicas:
    """Replicas by copy; frozen ones never answer, the others take `seconds`."""

    def __init__(self, *frozen: int, seconds: float = 0.1) -> None:
        self.frozen = set(frozen)
        self.seconds = seconds
        self.asked: list[tuple[int, list[str]]] = []
        self.n_cancelled = 0

    async def send(self, call: Call) -> Outcomes:
        self.asked.append((call.copy, [r.request_id for r in call.requests]))
        try:
            await asyncio.sleep(self.seconds if call.copy not in self.frozen else NEVER)
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        yield [(i, InferResult(r.request_id, "1", {})) for i, r in enumerate(call.requests)]


def test_a_frozen_holder_delays_nobody_for_long_while_another_could_serve() -> None:
    async def play() -> None:
        replicas, clock = Replicas(0), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        target = Target("pool", "m:1", n_replicas=2)

        async def ask(name: str) -> float:
            began = clock()
            assert (await forwarder.forward(target, request(name), began + 30)).model == name
            return clock() - began

        waited = await asyncio.gather(*(ask(str(n)) for n in range(40)))
        assert max(waited) < 4  # those that were on board, and those that waited for a call
        later = [await ask(f"later {n}") for n in range(10)]
        assert max(later) < 0.2  # goes elsewhere at once
        assert replicas.n_cancelled > 0  # nobody waits for the frozen one any more
        replicas.frozen.clear()
        await asyncio.sleep(20)
        await ask("after a while")
        assert replicas.asked[-1][0] == 0
        await forwarder.aclose()

    virtual_time.run(play)


def test_a_pinned_models_frozen_copy_is_left_out() -> None:
    async def play() -> None:
        replicas, clock = Replicas(1), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        target = Target("pool", "m:1", n_replicas=3, is_everywhere=True)
        asking = [forwarder.forward(target, request(str(n)), clock() + 30) for n in range(200)]
        await asyncio.gather(*asking)
        assert clock() < 5
        await forwarder.aclose()

    virtual_time.run(play)


@pytest.mark.parametrize(
    "target",
    [
        Target("pool", "m:1"),  # there is no other
        Target("pool", "m:1", n_replicas=2, load_s=4.0),  # it may be loading: twice would be a stampede
    ],
)
def test_a_slow_answer_is_waited_for_where_asking_another_would_not_help(target: Target) -> None:
    async def play() -> None:
        replicas, clock = Replicas(seconds=9.0), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        await forwarder.forward(target, request("a"), clock() + 30)
        assert [copy for copy, _ in replicas.asked] == [0]
        await forwarder.aclose()

    virtual_time.run(play)


def test_a_model_that_is_slow_is_not_taken_for_a_frozen_one_again() -> None:
    async def play() -> None:
        replicas, clock = Replicas(seconds=5.0), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        target = Target("pool", "m:1", n_replicas=2)
        for n in range(4):
            await forwarder.forward(target, request(str(n)), clock() + 30)
        assert [copy for copy, _ in replicas.asked] == [0, 1, 0, 0, 0]  # once, while nothing was known of it
        await forwarder.aclose()

    virtual_time.run(play)


def test_a_copy_that_answers_others_is_not_silent() -> None:
    async def play() -> None:
        clock = asyncio.get_running_loop().time
        asked: list[int] = []

        async def send(call: Call) -> Outcomes:
            asked.append(call.copy)
            await asyncio.sleep(8.0 if call.requests[0].request_id == "slow" else 0.5)
            yield [(i, InferResult("m", "1", {})) for i in range(len(call.requests))]

        forwarder = Forwarder(send, clock, has_silent=lambda _: True)
        target = Target("pool", "m:1", n_replicas=2)
        slow = asyncio.create_task(forwarder.forward(target, request("slow"), clock() + 30))
        await asyncio.sleep(0.1)
        for n in range(12):
            await forwarder.forward(target, request(str(n)), clock() + 30)
        await slow
        assert set(asked) == {0}
        await forwarder.aclose()

    virtual_time.run(play)


def test_two_silent_replicas_cost_an_answer_only_at_the_deadline() -> None:
    async def play() -> None:
        replicas, clock = Replicas(0, 1), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        with pytest.raises(DeadlineExceeded):
            await forwarder.forward(Target("pool", "m:1", n_replicas=2), request("a"), clock() + 20)
        assert clock() == pytest.approx(20)
        await asyncio.sleep(1)
        assert [copy for copy, _ in replicas.asked] == [0, 1, 0]  # the first once more, after a while
        assert replicas.n_cancelled == 3
        await forwarder.aclose()

    virtual_time.run(play)


def test_a_busy_replica_that_says_how_it_is_is_waited_for() -> None:
    async def play() -> None:
        replicas, clock = Replicas(0), asyncio.get_running_loop().time
        silent: set[str] = set()
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda pool: pool in silent)
        target = Target("pool", "m:1", n_replicas=2)
        asked = asyncio.create_task(forwarder.forward(target, request("a"), clock() + 30))
        await asyncio.sleep(15)
        assert [copy for copy, _ in replicas.asked] == [0]
        silent.add("pool")
        await asked
        assert clock() < 17
        await forwarder.aclose()

    virtual_time.run(play)
