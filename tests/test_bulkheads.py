"""Bulkheads: a slow model leaves room for the others; who is turned away, and until when."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from traffic_cases import Clock, Counts, Pool, model, settle, texts, work

from deployments.chunks import Chunk
from deployments.errors import DeadlineExceeded, EngineFailure, Overloaded, ServeError
from deployments.types import InferRequest, InferResult, Outcome, PoolStatus, Task, text_array
from serve_app.awake import AwakeClock
from serve_app.bulkhead import BUSY, Bulkheads
from serve_app.config import EndpointConfig, PoolRef
from serve_app.context import Context
from serve_app.forwarder import Call, Forwarder
from serve_app.gateway import Gateway
from serve_app.policies import Policies, Work
from serve_app.principals import ANONYMOUS
from serve_app.registry import Registry
from serve_app.telemetry import IngressMetrics
from serve_app.traffic_config import Bulkhead


class Rooms:
    def __init__(self, max_requests: int = 20) -> None:
        self.clock = Clock()
        self.count = Counts()
        self.pool = Pool()
        self.awake = AwakeClock(self.clock)
        self.layer = Bulkheads(self.count.metrics, self.clock, self.awake)
        self.layer.configure(EndpointConfig(bulkhead=Bulkhead(max_requests=max_requests)))
        self.tasks: list[asyncio.Task[InferResult]] = []
        self.gates: list[asyncio.Event] = []

    def start(self, name: str = "m", time_s: float = 30.0, priority: int = 0) -> None:
        gate = asyncio.Event()

        async def slow(one: Work) -> InferResult:
            await gate.wait()
            return await self.pool(one)

        one = work(texts("a", priority=priority), model(name), deadline=self.clock() + time_s)
        self.gates.append(gate)
        self.tasks.append(asyncio.create_task(self.layer.answer(one, slow)))

    async def finish(self, n: int) -> None:
        for gate in self.gates[:n]:
            gate.set()
        del self.gates[:n]
        await settle()

    async def outcome(self, name: str = "m", time_s: float = 30.0, priority: int = 0) -> ServeError | None:
        self.start(name, time_s, priority)
        await settle()
        task = self.tasks.pop()
        if task.done() and isinstance(error := task.exception(), ServeError):
            self.gates.pop()
            return error
        self.tasks.append(task)
        return None

    async def aclose(self) -> None:
        await self.finish(len(self.gates))
        await asyncio.gather(*self.tasks)


async def test_a_slow_model_leaves_room_for_the_others() -> None:
    rooms = Rooms(max_requests=20)
    for _ in range(20):
        assert await rooms.outcome("slow") is None
    error = await rooms.outcome("slow")
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 1.0  # nothing is measured yet
    assert rooms.count("shed_requests_total", model="slow", reason="full") == 1
    assert await rooms.outcome("quick") is None
    await rooms.finish(1)
    assert await rooms.outcome("slow") is None
    await rooms.aclose()


@pytest.mark.parametrize(("priority", "n_places"), [(-1, 16), (0, 20), (1, 22)])
async def test_the_lowest_priority_is_turned_away_first(priority: int, n_places: int) -> None:
    rooms = Rooms(max_requests=20)
    for _ in range(n_places):
        assert await rooms.outcome(priority=priority) is None
    assert isinstance(await rooms.outcome(priority=priority), Overloaded)
    await rooms.aclose()


async def test_places_are_given_back_by_those_who_fail_or_leave() -> None:
    rooms = Rooms(max_requests=1)
    rooms.start()
    await settle()
    rooms.tasks.pop().cancel()
    await settle()
    rooms.pool.error = EngineFailure("x")
    for _ in range(3):
        with pytest.raises(EngineFailure):
            await rooms.layer.answer(work(texts("a")), rooms.pool)


async def test_retry_after_is_what_waits_by_what_is_done() -> None:
    """40 wait, 8 are done a second: the last of them in 5 s."""
    rooms = Rooms(max_requests=40)
    for _ in range(40):
        rooms.start()
    await settle()
    for _ in range(3):
        rooms.clock.now += 1.0
        await rooms.finish(8)
        for _ in range(8):
            rooms.start()
        await settle()
    error = await rooms.outcome()
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(5.0, rel=0.3)
    await rooms.aclose()


async def test_a_request_that_could_only_be_late_is_turned_away_at_once() -> None:
    rooms = Rooms(max_requests=100)
    await busy_for(rooms, seconds=3, answered=8, late=0)
    error = await rooms.outcome(time_s=2.0)
    assert isinstance(error, Overloaded)
    assert "after the deadline" in error.message
    assert rooms.count("shed_requests_total", reason="late") == 1
    assert await rooms.outcome(time_s=30.0) is None
    await rooms.aclose()


async def test_a_machine_that_slept_turns_nobody_away_for_it() -> None:
    rooms = Rooms(max_requests=100)
    await busy_for(rooms, seconds=3, answered=8, late=0)
    rooms.clock.now += 120.0
    assert await rooms.outcome(time_s=10.0) is None
    for _ in range(120):  # awake, but nobody is answered
        rooms.clock.now += 1.0
        rooms.awake()
    assert isinstance(await rooms.outcome(time_s=10.0), Overloaded)
    await rooms.aclose()


async def test_a_quiet_models_throughput_says_nothing_of_its_capacity() -> None:
    """One request an hour, then fifty at once: none of them would wait fifty hours."""
    rooms = Rooms(max_requests=100)
    for _ in range(5):
        rooms.start()
        await settle()
        for _ in range(1800):
            rooms.clock.now += 2.0
            rooms.awake()
        await rooms.finish(1)
    for _ in range(50):
        assert await rooms.outcome(time_s=1.0) is None
    await rooms.aclose()


async def busy_for(rooms: Rooms, seconds: int, answered: int, late: int) -> None:
    """Keep 40 requests waiting while each second some are answered and some pass their deadline."""
    for _ in range(40):
        rooms.start(time_s=3600)
    await settle()
    for _ in range(seconds):
        rooms.clock.now += 1.0
        await rooms.finish(answered)
        rooms.pool.error = DeadlineExceeded("no answer in time")
        await rooms.finish(late)
        rooms.pool.error = None
        for _ in range(answered + late):
            rooms.start(time_s=3600)
        await settle()


async def test_who_came_too_late_was_not_answered() -> None:
    """8 a second are answered and 20 give up: a request with 2 s would be late, with 30 s it would not."""
    rooms = Rooms(max_requests=100)
    await busy_for(rooms, 3, answered=8, late=20)
    error = await rooms.outcome(time_s=2.0)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(5.0, rel=0.3)
    assert await rooms.outcome(time_s=30.0) is None
    await rooms.finish(len(rooms.gates))
    await asyncio.gather(*rooms.tasks, return_exceptions=True)


@pytest.mark.parametrize(("answered", "is_refused"), [(7, False), (8, True)])
async def test_a_few_answers_are_no_measure(answered: int, is_refused: bool) -> None:
    """Seven cold answers in a first second say nothing; the eighth makes it a rate: 40 wait, 8 a second."""
    rooms = Rooms(max_requests=100)
    await busy_for(rooms, 1, answered=answered, late=0)
    assert (await rooms.outcome(time_s=2.0) is not None) is is_refused
    await rooms.aclose()


async def test_what_was_measured_is_forgotten_when_it_is_quiet_again() -> None:
    rooms = Rooms(max_requests=BUSY * 2)
    for _ in range(BUSY * 2):
        rooms.start()
    await settle()
    rooms.clock.now += 100.0
    await rooms.finish(BUSY * 2)  # slow that time
    for _ in range(BUSY + 4):
        assert await rooms.outcome(time_s=1.0) is None
    await rooms.aclose()


class Streams:
    """A pool that streams until it is told to stop."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def stream(self, target: object, request: InferRequest, deadline: float) -> AsyncGenerator[list[Chunk], None]:
        yield [Chunk("chat", "1", text="a")]
        await self.go_on.wait()


async def test_what_was_generated_is_known_however_its_stream_ends() -> None:
    """Streamed or not: limits settle tokens, and the request log shows what was said."""
    status = model("chat", task=Task.TEXT_GENERATION, cache_ttl_s=None)
    registry = Registry()
    registry.configure({"p": PoolRef()}, {})
    registry.update("p", PoolStatus((status,), {}, 1))
    request = InferRequest("chat", {"text": text_array(["hello"])}, timeout_s=0.05)
    gateway = Gateway(registry, Forwarder(no_call), IngressMetrics(), None, streams=Slow())  # type: ignore[arg-type]

    left, late, whole = (Context(principal=ANONYMOUS) for _ in range(3))
    async with aclosing(gateway.stream(request, left)) as pieces:
        await anext(pieces)
    with pytest.raises(DeadlineExceeded):
        [_ async for _ in gateway.stream(request, late)]
    with pytest.raises(DeadlineExceeded):
        await gateway.infer(request, whole)
    for context in (left, late, whole):
        assert context.usage.n_tokens == 3
        assert context.result is not None
        assert context.result.outputs["text"].tolist() == [b"abc"]


class Slow:
    async def stream(self, target: object, request: InferRequest, deadline: float) -> AsyncGenerator[list[Chunk], None]:
        yield [Chunk("chat", "1", text="abc", n_tokens=3)]
        await asyncio.sleep(0.05)
        raise DeadlineExceeded("no answer in time")


async def test_streams_take_places_too_and_give_them_back() -> None:
    status = model("chat", task=Task.TEXT_GENERATION, cache_ttl_s=None)
    registry = Registry()
    registry.configure({"p": PoolRef()}, {})
    registry.update("p", PoolStatus((status,), {}, 1))
    metrics, streams = IngressMetrics(), Streams()
    bulkheads = Bulkheads(metrics.traffic)
    policies = Policies(layers=(bulkheads,), room=bulkheads)
    gateway = Gateway(registry, Forwarder(no_call), metrics, None, policies, streams=streams)  # type: ignore[arg-type]
    gateway.configure(EndpointConfig(bulkhead=Bulkhead(max_requests=2)))

    def stream() -> AsyncGenerator[Any, None]:
        request = InferRequest("chat", {"text": text_array(["hello"])})
        return gateway.stream(request, Context(principal=ANONYMOUS))

    running = [stream(), stream()]
    for one in running:
        await anext(one)
    with pytest.raises(Overloaded):
        await anext(stream())
    await running[0].aclose()
    again = stream()
    await anext(again)
    for one in (running[1], again):
        await one.aclose()


async def no_call(call: Call) -> list[Outcome]:
    raise NotImplementedError
