"""Alarms: in order, once, none after its cancelling; a limit behaves as `asyncio.timeout` does."""

import asyncio

import pytest
from virtual_time import run

from deployments.alarms import Alarms, Limit


def test_alarms_ring_in_order_at_their_time_and_cancelled_ones_never() -> None:
    async def main() -> list[tuple[str, float]]:
        clock, rung = asyncio.get_running_loop().time, list[tuple[str, float]]()
        alarms = Alarms(clock)

        def ring(name: str) -> None:
            rung.append((name, clock()))

        alarms.set(3.0, lambda: ring("third"))
        alarms.set(1.0, lambda: ring("first"))
        alarms.set(2.0, lambda: ring("never")).cancel()
        alarms.set(2.0, lambda: ring("second"))
        await asyncio.sleep(10)
        return rung

    assert run(main) == [("first", 1.0), ("second", 2.0), ("third", 3.0)]


def test_an_alarm_set_by_one_that_rings_is_heard() -> None:
    async def main() -> float:
        clock = asyncio.get_running_loop().time
        alarms, rung = Alarms(clock), asyncio.Event()
        alarms.set(1.0, lambda: alarms.set(2.0, rung.set) and None)
        await rung.wait()
        return clock()

    assert run(main) == 2.0


def test_an_alarm_set_by_one_that_rings_delays_no_earlier_one() -> None:
    async def main() -> list[float]:
        clock, rung = asyncio.get_running_loop().time, list[float]()
        alarms = Alarms(clock)
        alarms.set(1.0, lambda: alarms.set(5.0, lambda: rung.append(clock())) and None)
        alarms.set(2.0, lambda: rung.append(clock()))
        await asyncio.sleep(10)
        return rung

    assert run(main) == [2.0, 5.0]


async def test_cancelled_alarms_do_not_pile_up() -> None:
    alarms = Alarms()
    for _ in range(10_000):
        alarms.set(1e9, lambda: None).cancel()
    assert len(alarms) < 100


async def test_a_limit_ends_what_takes_too_long_and_nothing_else() -> None:
    alarms, clock = Alarms(), asyncio.get_running_loop().time
    async with Limit(alarms, clock() + 10):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with Limit(alarms, clock() + 0.01):
            await asyncio.sleep(10)
    await asyncio.sleep(0)  # the task is not cancelled any more
    with pytest.raises(ValueError, match="its own"):
        async with Limit(alarms, clock() + 10):
            raise ValueError("its own")


async def test_a_limit_leaves_a_cancelled_task_cancelled() -> None:
    alarms, clock = Alarms(), asyncio.get_running_loop().time

    async def work() -> None:
        async with Limit(alarms, clock() + 10):
            await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
