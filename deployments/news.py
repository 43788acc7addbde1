"""Outcomes of the requests of one call as they become known. Used by `deployments.replica`."""

import asyncio
from collections.abc import AsyncIterator

from deployments.types import Outcome


class News:
    """Outcomes of a call's requests, handed on together where they came together."""

    def __init__(self, n_expected: int) -> None:
        self._n_expected = n_expected
        self._some: list[tuple[int, Outcome]] = []
        self._arrived = asyncio.Event()

    def put(self, index: int, task: asyncio.Task[Outcome]) -> None:
        """Take one; called when its task is done. Who has been forgotten is not waited for."""
        if task.cancelled():
            self._n_expected -= 1
        else:
            self._some.append((index, task.result()))
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, Outcome]]]:
        while self._n_expected:
            await self._arrived.wait()
            await asyncio.sleep(0)  # others of the same batch finish in this very step
            self._arrived.clear()
            some, self._some = self._some, []
            self._n_expected -= len(some)
            if some:
                yield some
