"""Streamed answers on their way from pools: which copy is asked, once more if it died before a word was said.

The counterpart of `forwarder.py`: a stream has a call of its own, so that its end, its client's going away and its
deadline are its own as well. Pure asyncio; called by `gateway.py`, asks through whatever `Open` it is given
(`handles.py`).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias

from deployments.chunks import Chunk
from deployments.errors import DeadlineExceeded, Overloaded, ReplicaLost
from deployments.types import MONOTONIC, Clock, InferRequest
from serve_app.lanes import Target

logger = logging.getLogger(__name__)

COPY_STREAMS = 64  # streams that earn a model one more copy
MAX_STREAMS = 4096  # of one model; beyond, 429

Stream: TypeAlias = AsyncGenerator[Sequence[Chunk], None]
Open: TypeAlias = Callable[[Target, InferRequest, int], Stream]  # (target, request, copy)


class Streams:
    """Opens streams and counts those that are open, by model and copy."""

    def __init__(self, open_stream: Open, clock: Clock = MONOTONIC) -> None:
        self._open_stream = open_stream
        self._clock = clock
        self._open: dict[tuple[str, str], Counter[int]] = {}

    async def stream(self, target: Target, request: InferRequest, deadline: float) -> Stream:
        """Yield a model's answer piece by piece; close it (`contextlib.aclosing`) to stop the generation.

        Raises:
            DeadlineExceeded: it was not over by then.
            Overloaded: too many streams of this model are open.
            ServeError: the pool's own error, before the first piece or later.
        """
        key = (target.pool, target.key)
        open_streams = self._open.setdefault(key, Counter())
        if open_streams.total() >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} streams of model {target.key!r} are open", retry_after_s=1.0)
        copy = self._copy(target, open_streams)
        open_streams[copy] += 1
        try:
            async with aclosing(self._twice(target, request, deadline, copy)) as pieces:
                async for ready in pieces:
                    yield ready
        finally:
            open_streams[copy] -= 1
            if not open_streams.total():
                self._open.pop(key, None)

    def _copy(self, target: Target, open_streams: Counter[int]) -> int:
        """Return the copy with the fewest streams; a busy model has earned several."""
        most = max(target.n_replicas, 1)
        n_copies = most if target.is_everywhere else min(most, 1 + open_streams.total() // COPY_STREAMS)
        return min(range(n_copies), key=lambda copy: open_streams[copy])

    async def _twice(self, target: Target, request: InferRequest, deadline: float, copy: int) -> Stream:
        """Ask; ask once more if the replica died before the first piece (nothing has been said yet)."""
        has_begun = False
        try:
            async with aclosing(self._once(target, request, deadline, copy)) as pieces:
                async for ready in pieces:
                    has_begun = True
                    yield ready
            return
        except ReplicaLost as exc:
            if has_begun:
                raise
            logger.warning("%s: a stream of model %s is asked for again", exc.message, target.key)
        async with aclosing(self._once(target, request, deadline, copy)) as pieces:
            async for ready in pieces:
                yield ready

    async def _once(self, target: Target, request: InferRequest, deadline: float, copy: int) -> Stream:
        left = max(deadline - self._clock(), 0.001)
        async with aclosing(self._open_stream(target, request.with_timeout(left), copy)) as pieces:
            while True:
                try:
                    # NOTE: never around a `yield`: a timeout belongs to the task that entered it.
                    async with asyncio.timeout(deadline - self._clock()):
                        ready = await anext(pieces, None)
                except TimeoutError:
                    raise DeadlineExceeded(f"no answer from model {target.key!r} in time") from None
                if ready is None:
                    return
                yield ready
