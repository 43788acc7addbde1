"""Many requests on one stream, worked on at the same time and answered in the order they came."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


async def in_order(stream: AsyncIterable[A], work: Callable[[A], Awaitable[B]], n_open: int) -> AsyncIterator[B]:
    """Yield `work(request)` of each request; at most `n_open` are read ahead of the answer that is due next.

    An error in `work` or in the stream ends it. Whatever still runs is cancelled when the reader of the answers leaves.
    """
    due: asyncio.Queue[asyncio.Task[B] | None] = asyncio.Queue()
    room = asyncio.Semaphore(n_open)
    running: set[asyncio.Task[B]] = set()

    async def one(request: A) -> B:
        return await work(request)

    async def read() -> None:
        try:
            async for request in stream:
                await room.acquire()
                task = asyncio.create_task(one(request))
                running.add(task)
                due.put_nowait(task)
        finally:
            due.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await due.get()) is not None:
            yield await task
            running.discard(task)
            room.release()
        await reader  # raises what was wrong with the stream
    finally:
        for left in (reader, *running):
            left.cancel()
        await asyncio.gather(reader, *running, return_exceptions=True)
