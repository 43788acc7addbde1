"""An engine finds out how it runs best after its first answer, never before, and never while it leaves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from test_residency import spec

from deployments import settling
from deployments.settling import Settling


class Engine:
    def __init__(self) -> None:
        self.is_settled = False
        self.began, self.may_end = Event(), Event()
        self.may_end.set()
        self.n_trials = 0
        self.error: Exception | None = None

    def settle(self) -> None:
        self.n_trials += 1
        self.began.set()
        self.may_end.wait(5)
        if self.error is not None:
            raise self.error
        self.is_settled = True


@pytest.fixture
async def moment(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settling]:
    monkeypatch.setattr(settling, "_MOMENT_S", 0.05)
    with ThreadPoolExecutor(1) as thread:
        yield Settling(thread)


def engine() -> Any:
    return Engine()


async def until(what: Callable[[], object]) -> None:
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come")


async def test_an_engine_settles_once_a_moment_after_its_first_answer(moment: Settling) -> None:
    made = engine()
    for _ in range(3):
        moment.answered(spec("m"), made)
    assert made.n_trials == 0
    await until(lambda: made.is_settled)
    moment.answered(spec("m"), made)
    await asyncio.sleep(0.1)
    assert (made.n_trials, made.is_settled) == (1, True)
    moment.answered(spec("m"), object())  # type: ignore[arg-type]  # most engines have nothing to find out
    await moment.leave(made)


async def test_one_that_leaves_before_is_left_alone_and_may_come_back(moment: Settling) -> None:
    made = engine()
    moment.answered(spec("m"), made)
    await moment.leave(made)
    await asyncio.sleep(0.2)
    assert made.n_trials == 0
    moment.answered(spec("m"), made)
    await until(lambda: made.is_settled)
    await moment.leave(made)


async def test_one_that_settles_leaves_when_it_has(moment: Settling) -> None:
    made = engine()
    made.may_end.clear()
    moment.answered(spec("m"), made)
    assert await asyncio.to_thread(made.began.wait, 5)
    leaving = asyncio.create_task(moment.leave(made))
    await asyncio.sleep(0.1)
    assert not leaving.done()
    made.may_end.set()
    await leaving
    assert made.is_settled


async def test_one_that_cannot_is_logged_and_runs_as_before(moment: Settling, caplog: pytest.LogCaptureFixture) -> None:
    made = engine()
    made.error = RuntimeError("no trial today")
    moment.answered(spec("m"), made)
    await until(lambda: "no trial today" in caplog.text)
    await moment.leave(made)
