"""Many requests on one stream, worked on at the same time and answered in the order they came.

A request may have many answers: the pieces of a generated text leave as they come, once it is their request's turn.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


async def in_order(stream: AsyncIterable[A], work: Callable[[A], AsyncIterator[B]], n_open: int) -> AsyncIterator[B]:
    """Yield what `work(request)` yields for each request; at most `n_open` are read ahead of the one that is due next.

    An error in `work` or in the stream ends it. Whatever still runs is cancelled when the reader of the answers leaves.
    """
    due: asyncio.Queue[tuple[asyncio.Task[None], asyncio.Queue[list[B]]] | None] = asyncio.Queue()
    room = asyncio.Semaphore(n_open)
    running: set[asyncio.Task[None]] = set()

    async def one(request: A, answers: asyncio.Queue[list[B]]) -> None:
        try:
            async for answer in work(request):
                answers.put_nowait([answer])
        finally:
            answers.put_nowait([])  # the end

    async def read() -> None:
        try:
            async for request in stream:
                await room.acquire()
                answers: asyncio.Queue[list[B]] = asyncio.Queue()
                task = asyncio.create_task(one(request, answers))
                running.add(task)
                due.put_nowait((task, answers))
        finally:
            due.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (next_due := await due.get()) is not None:
            task, answers = next_due
            while answer := await answers.get():
                yield answer[0]
            await task  # raises what was wrong with the request
            running.discard(task)
            room.release()
        await reader  # raises what was wrong with the stream
    finally:
        for left in (reader, *running):
            left.cancel()
        await asyncio.gather(reader, *running, return_exceptions=True)
