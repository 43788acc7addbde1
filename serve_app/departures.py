"""Tells pools which requests of a call nobody waits for any more, while others of the same call go on.

A call is cancelled by Serve only as a whole. Who leaves in one round of the loop is told together, in one message to
all replicas of the pool: only one has the call, but which is the router's affair. Used by `forwarder.py`.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias

logger = logging.getLogger(__name__)

# (pool, sender, indices of requests by number of call)
Tell: TypeAlias = Callable[[str, str, Mapping[int, Sequence[int]]], Awaitable[None]]


class Departures:
    """Collects who left; `spawn` runs a coroutine in a task that its owner keeps."""

    def __init__(self, sender: str, tell: Tell | None, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._sender = sender
        self._tell = tell
        self._spawn = spawn
        self._left: dict[str, dict[int, list[int]]] = {}  # by pool, by number of call

    def note(self, pool: str, number: int, index: int) -> None:
        """Have the pool told that request `index` of call `number` is not waited for."""
        if self._tell is None:
            return
        if not self._left:
            self._spawn(self._send(self._tell))
        self._left.setdefault(pool, {}).setdefault(number, []).append(index)

    async def _send(self, tell: Tell) -> None:
        left, self._left = self._left, {}
        for pool, calls in left.items():
            try:
                await tell(pool, self._sender, calls)
            except Exception as exc:  # the work is then done for nobody, which harms nobody else
                logger.warning("pool %s was not told who has left: %s", pool, type(exc).__name__)
