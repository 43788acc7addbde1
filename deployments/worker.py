"""One thread for small pieces of work: what waits together runs in one go, so that many cost one hop and not many.

Two hops between threads cost about 0.1 ms, several times what preparing a short text does. Pure asyncio but for the
thread; made by `deployments.replica`, used by `deployments.loaded`.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

R = TypeVar("R")


@dataclass(eq=False, slots=True)
class _Job:
    function: Callable[..., Any]
    args: tuple[object, ...]
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = field(default=None)


class Worker:
    """Runs functions in the order they came, never two at once."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: list[_Job] = []
        self._running: asyncio.Future[None] | None = None

    async def run(self, function: Callable[..., R], *args: object) -> R:
        """Return what `function` returns, or raise what it raises. Work that nobody waits for is left out."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(function, args, future))
        if self._running is None:
            self._start()
        return await future

    def close(self) -> None:
        """Stop the thread once its present work is done; what waits is cancelled."""
        for job in self._waiting:
            job.future.cancel()
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        jobs = [job for job in self._waiting if not job.future.done()]
        self._waiting.clear()
        if jobs:
            self._running = asyncio.get_running_loop().run_in_executor(self._thread, _run_all, jobs)
            self._running.add_done_callback(lambda _: self._finished(jobs))

    def _finished(self, jobs: list[_Job]) -> None:
        self._running = None
        for job in jobs:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)
        self._start()


def _run_all(jobs: list[_Job]) -> None:
    for job in jobs:
        try:
            job.result = job.function(*job.args)
        except Exception as exc:
            job.error = exc
