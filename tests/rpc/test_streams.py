"""`in_order`: many at a time, answers in order, nothing left running."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.rpc.streams import in_order


async def numbers(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


async def test_work_overlaps_and_answers_keep_their_order() -> None:
    open_now = most = 0

    async def work(i: int) -> AsyncIterator[int]:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.001 * (10 - i))
        open_now -= 1
        yield i

    assert [i async for i in in_order(numbers(10), work, 4)] == list(range(10))
    assert most == 4


async def test_an_error_ends_the_stream_and_cancels_what_runs() -> None:
    cancelled: list[int] = []

    async def work(i: int) -> AsyncIterator[int]:
        if i == 1:
            raise ValueError("one")
        try:
            await asyncio.sleep(0 if i == 0 else 1000)
        except asyncio.CancelledError:
            cancelled.append(i)
            raise
        yield i

    answers = in_order(numbers(4), work, 8)
    assert await anext(answers) == 0
    with pytest.raises(ValueError, match="one"):
        await anext(answers)
    assert sorted(cancelled) == [2, 3]


async def test_an_error_in_the_stream_itself_comes_after_the_answers_before_it() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError

    async def work(i: int) -> AsyncIterator[int]:
        yield i

    answers = in_order(broken(), work, 8)
    assert await anext(answers) == 1
    with pytest.raises(ConnectionError):
        await anext(answers)


async def test_a_reader_that_leaves_cancels_what_runs() -> None:
    running = asyncio.Event()
    ended = asyncio.Event()

    async def work(i: int) -> AsyncIterator[int]:
        if i == 0:
            yield 0
            return
        running.set()
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()
        yield i

    answers = in_order(numbers(3), work, 8)
    assert await anext(answers) == 0
    await running.wait()
    await answers.aclose()  # type: ignore[attr-defined]
    assert ended.is_set()


async def test_a_request_may_have_many_answers_and_the_next_one_waits_for_its_turn() -> None:
    async def work(i: int) -> AsyncIterator[int]:
        for piece in range(3):
            await asyncio.sleep(0.001 * (2 - i))
            yield 10 * i + piece

    assert [i async for i in in_order(numbers(2), work, 8)] == [0, 1, 2, 10, 11, 12]
