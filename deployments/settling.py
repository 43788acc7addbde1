"""Engines find out how they run best a moment after their first answers, in nobody's way. For `deployments.loader`.

What a trial costs is much of what a load does: before the first answer, it would double a cold start.
"""

import asyncio
import contextvars
import logging
from concurrent.futures import Executor
from typing import cast

from deployments.engines.base import Engine, Unsettled
from deployments.spec import ModelSpec

logger = logging.getLogger(__name__)
_MOMENT_S = 1.0


class Settling:
    """Has engines settle in the device thread, where no batch runs meanwhile."""

    def __init__(self, device_thread: Executor) -> None:
        self._device_thread = device_thread
        self._due: dict[int, asyncio.Task[None]] = {}  # by id of the engine, which is loaded as long as it stands here

    def answered(self, spec: ModelSpec, engine: Engine) -> None:
        """Take note of a batch that ran: if the engine is unsettled, it settles soon."""
        if not getattr(engine, "is_settled", True) and id(engine) not in self._due:
            work = self._settle(spec, cast(Unsettled, engine))
            self._due[id(engine)] = asyncio.get_running_loop().create_task(work, context=contextvars.Context())

    async def leave(self, engine: object) -> None:
        """Let an engine go that is about to leave the device: not while it settles."""
        if (task := self._due.pop(id(engine), None)) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _settle(self, spec: ModelSpec, engine: Unsettled) -> None:
        await asyncio.sleep(_MOMENT_S)
        trial = asyncio.get_running_loop().run_in_executor(self._device_thread, engine.settle)
        try:
            await asyncio.shield(trial)
        except asyncio.CancelledError:
            await asyncio.wait([trial])
            raise
        except Exception:
            logger.exception("model %s could not find out how it runs best; it runs as before", spec.key)
