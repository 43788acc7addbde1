"""Worker: order, one thread, several in a hop, and each with its own result."""

import asyncio
import threading
import time

import pytest

from deployments.worker import Worker


async def test_each_gets_its_own_result_or_error_in_order() -> None:
    worker, order = Worker("w"), list[int]()

    def work(n: int) -> int:
        order.append(n)
        if n == 2:
            raise ValueError("two")
        return n * 10

    results = await asyncio.gather(*(worker.run(work, n) for n in range(4)), return_exceptions=True)
    assert [r if isinstance(r, int) else str(r) for r in results] == [0, 10, "two", 30]
    assert order == [0, 1, 2, 3]
    worker.close()


async def test_what_waits_together_runs_in_one_hop_of_one_thread() -> None:
    worker, threads = Worker("w"), set[str]()
    answered: list[float] = []

    def work() -> None:
        threads.add(threading.current_thread().name)
        time.sleep(0.01)

    async def one() -> None:
        await worker.run(work)
        answered.append(time.monotonic())

    await asyncio.gather(*(one() for _ in range(5)))
    assert len(threads) == 1
    assert answered[4] - answered[1] < 0.01  # the first went alone, the others came back together
    worker.close()


async def test_work_that_nobody_waits_for_is_left_out() -> None:
    worker, done = Worker("w"), list[str]()
    first = asyncio.create_task(worker.run(time.sleep, 0.05))
    await asyncio.sleep(0)
    second, third = (asyncio.create_task(worker.run(done.append, name)) for name in ("second", "third"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, third)
    assert done == ["third"]
    worker.close()


async def test_closing_cancels_what_waits() -> None:
    worker = Worker("w")
    first = asyncio.create_task(worker.run(time.sleep, 0.05))
    await asyncio.sleep(0)
    second = asyncio.create_task(worker.run(time.sleep, 0))
    await asyncio.sleep(0)
    worker.close()
    with pytest.raises(asyncio.CancelledError):
        await second
    await first
