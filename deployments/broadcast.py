"""Questions to all replicas of a deployment at once, answered by those that can: a frozen one silences nobody else.

Called by `deployments.catalog` and `serve_app.handles`.
"""

import asyncio
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answers:
    """What came in time; replicas that raised are neither in there nor silent."""

    given: list[Any]
    n_silent: int = 0


async def ask_all(handle: Any, method: str, *args: Any, timeout_s: float) -> Answers:
    """Ask every replica behind a handle, and wait no longer than `timeout_s`.

    Raises:
        TimeoutError: it cannot even be said which replicas there are.
        DeploymentUnavailableError: there are none.
    """
    # NOTE: the results one by one; Ray's own `results_async` gives all of them or none.
    async with asyncio.timeout(timeout_s):
        results = await handle.broadcast(method, *args)._fetch_replica_results_async()
    asked = [asyncio.ensure_future(result.get_async()) for result in results]
    if not asked:
        return Answers([])
    try:
        done, silent = await asyncio.wait(asked, timeout=timeout_s)
    finally:
        for one in asked:
            one.cancel()
    given = [one.result() for one in asked if one in done and not one.cancelled() and one.exception() is None]
    return Answers(given, len(silent))
