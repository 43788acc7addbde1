"""Stepper: streams over a fake engine, in virtual time: joining, leaving, deadlines, slow readers, failures."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest

from deployments.chunks import Finish
from deployments.errors import DeadlineExceeded, EngineFailure, InputTooLong, Overloaded
from deployments.generation import Delta, Job, Sampling, StepReport
from deployments.spec import BatchLimits
from deployments.stepper import Stepper
from deployments.turns import Turns


class FakeEngine:
    """Gives each job its prompt's numbers back, one a step; `room` jobs run together."""

    def __init__(self, room: int = 4) -> None:
        self.now = 0.0
        self.room = room
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.done: dict[Job, int] = {}
        self.n_steps = 0
        self.poison: Job | None = None
        self.broken = False

    async def step(self, joining: Sequence[Job], leaving: Sequence[Job]) -> StepReport:
        await asyncio.sleep(0)
        self.n_steps += 1
        self.now += 1.0
        if self.broken:
            self.broken = False
            raise RuntimeError("out of memory")
        self.waiting = [job for job in [*self.waiting, *joining] if job not in leaving]
        self.running = [job for job in self.running if job not in leaving]
        while self.waiting and len(self.running) < self.room:
            self.running.append(self.waiting.pop(0))
        deltas = [self.delta(job) for job in self.running]
        self.running = [d.job for d in deltas if not d.is_last]
        return StepReport(deltas, len(self.waiting), len(self.running), 0, len(deltas), 10 * len(self.running))

    async def reach(self, n_steps: int) -> None:
        for _ in range(1000):
            if self.n_steps >= n_steps:
                return
            await asyncio.sleep(0)

    def delta(self, job: Job) -> Delta:
        if job is self.poison:
            return Delta(job, error=EngineFailure("poisoned"))
        n = self.done[job] = self.done.get(job, 0) + 1
        return Delta(job, f"{job.prompt[n - 1]} ", 1, finish=Finish.STOP if n == len(job.prompt) else None)


def job(*numbers: int) -> Job:
    return Job(numbers, Sampling(max_tokens=len(numbers)))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def stepper(engine: FakeEngine) -> AsyncIterator[Stepper]:
    limits = BatchLimits(max_queue_items=8)
    stepper = Stepper(engine.step, limits, Turns(lambda: engine.now).of("m"), lambda: engine.now)
    yield stepper
    for _ in range(5):
        await asyncio.sleep(0)
    assert not stepper._open
    assert not stepper._leaving
    assert not stepper._n_tokens
    assert not engine.running


async def text(stepper: Stepper, *jobs: Job, deadline: float = 1e9) -> list[str]:
    texts: dict[Job, str] = dict.fromkeys(jobs, "")
    async with aclosing(stepper.stream(jobs, deadline)) as stream:
        async for deltas in stream:
            for delta in deltas:
                texts[delta.job] += delta.text
    return list(texts.values())


async def test_every_stream_gets_its_own_text_in_order(stepper: Stepper, engine: FakeEngine) -> None:
    answers = await asyncio.gather(*(text(stepper, job(n, n + 1, n + 2)) for n in range(4)))
    assert answers == [[f"{n} {n + 1} {n + 2} "] for n in range(4)]
    assert engine.n_steps == 3


async def test_a_request_of_several_sequences_ends_with_the_last(stepper: Stepper) -> None:
    assert await text(stepper, job(1), job(2, 3, 4)) == ["1 ", "2 3 4 "]


async def test_one_joins_while_others_run(stepper: Stepper, engine: FakeEngine) -> None:
    long = asyncio.create_task(text(stepper, job(*range(50))))
    await engine.reach(5)
    assert await text(stepper, job(7, 8)) == ["7 8 "]
    assert not long.done()
    await long


async def test_leaving_frees_the_row_with_the_next_step(stepper: Stepper, engine: FakeEngine) -> None:
    other = asyncio.create_task(text(stepper, job(*range(30))))
    async with aclosing(stepper.stream([job(*range(1000))], 1e9)) as stream:
        await anext(stream)
    await engine.reach(engine.n_steps + 2)
    assert len(engine.running) == 1
    assert (await other)[0].startswith("0 1 2")


async def test_a_deadline_ends_a_stream_and_frees_its_row(stepper: Stepper, engine: FakeEngine) -> None:
    with pytest.raises(DeadlineExceeded):
        await text(stepper, job(*range(1000)), deadline=5.0)
    assert engine.now <= 7


async def test_a_slow_reader_holds_nobody_up_and_gets_everything_at_once(stepper: Stepper, engine: FakeEngine) -> None:
    async with aclosing(stepper.stream([job(*range(20))], 1e9)) as stream:
        first = await anext(stream)
        await engine.reach(20)
        await asyncio.sleep(0)
        (rest,) = [deltas async for deltas in stream]
    assert rest[0].n_tokens == 20 - first[0].n_tokens
    assert rest[0].finish is Finish.STOP
    assert (first[0].text + rest[0].text).split() == [str(n) for n in range(20)]


async def test_a_slow_reader_hears_of_a_deadline_that_passed_while_it_was_away(
    stepper: Stepper, engine: FakeEngine
) -> None:
    async with aclosing(stepper.stream([job(*range(1000))], 5.0)) as stream:
        while engine.now < 4:
            await anext(stream)
        await engine.reach(8)
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            [deltas async for deltas in stream]


async def test_a_slow_reader_hears_of_a_failure_that_came_when_it_had_all_there_was(
    stepper: Stepper, engine: FakeEngine
) -> None:
    async with aclosing(stepper.stream([job(*range(1000))], 1e9)) as stream:
        await anext(stream)
        engine.broken = True
        await engine.reach(engine.n_steps + 2)
        with pytest.raises(EngineFailure):
            [deltas async for deltas in stream]


async def test_a_failing_job_fails_its_request_alone(stepper: Stepper, engine: FakeEngine) -> None:
    engine.poison = job(1, 2)
    bad, good = await asyncio.gather(
        text(stepper, engine.poison, job(*range(90))), text(stepper, job(5, 6)), return_exceptions=True
    )
    assert isinstance(bad, EngineFailure)
    assert good == ["5 6 "]


async def test_a_broken_step_fails_all_that_run_and_the_next_ones_work(stepper: Stepper, engine: FakeEngine) -> None:
    engine.broken = True
    with pytest.raises(EngineFailure, match="out of memory"):
        await text(stepper, job(1, 2))
    assert await text(stepper, job(3)) == ["3 "]


async def test_too_many_waiting_is_429_with_a_time(stepper: Stepper, engine: FakeEngine) -> None:
    engine.room = 0
    tasks = [asyncio.create_task(text(stepper, job(1))) for _ in range(8)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as caught:
        await text(stepper, job(1))
    assert caught.value.retry_after_s
    with pytest.raises(InputTooLong):
        await text(stepper, *(job(1) for _ in range(9)))
    engine.room = 4
    assert await asyncio.gather(*tasks) == [["1 "]] * 8


async def test_200_streams_cancelled_at_random_leave_nothing_behind(engine: FakeEngine) -> None:
    engine.room = 16
    limits = BatchLimits(max_queue_items=500)
    stepper = Stepper(engine.step, limits, Turns(lambda: engine.now).of("m"), lambda: engine.now)
    rng = random.Random(0)
    tasks = [asyncio.create_task(text(stepper, job(*range(rng.randint(1, 60))))) for _ in range(200)]
    for task in tasks:
        if rng.random() < 0.7:
            for _ in range(rng.randint(0, 8)):
                await asyncio.sleep(0)
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _ in range(20):
        await asyncio.sleep(0)
    assert (engine.running, engine.waiting) == ([], [])
    assert (stepper._open, stepper._joining, stepper._leaving, stepper._n_tokens) == ({}, [], [], {})
    assert stepper._task is None
    assert stepper.waiting_s == 0.0
    assert len(asyncio.all_tasks()) == 1
