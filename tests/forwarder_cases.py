"""A pool that answers as told, behind a forwarder: shared by the tests of lanes."""

import asyncio
from collections.abc import Callable, Iterator

import numpy as np

from deployments.errors import ServeError
from deployments.types import InferRequest, InferResult, Outcome
from serve_app import lanes
from serve_app.forwarder import Forwarder
from serve_app.lanes import Call, Outcomes, Target

NEVER = 1e9
MINILM = Target("pool", "minilm:1")


def request(name: str, size: int = 1) -> InferRequest:
    return InferRequest("minilm", {"x": np.zeros(size, np.uint8)}, request_id=name)


class Pool:
    """Answers each request with its own id; holds calls until `gate` opens; fails as told."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.refused: dict[str, ServeError] = {}
        self.n_cancelled = 0

    async def send(self, call: Call) -> Outcomes:
        self.calls.append(call)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        if self.failures:
            raise self.failures.pop(0)
        for some in self.chunks(call):
            yield some

    def chunks(self, call: Call) -> list[list[tuple[int, Outcome]]]:
        return [[(i, self.answer(request)) for i, request in enumerate(call.requests)]]

    def answer(self, request: InferRequest) -> Outcome:
        return self.refused.get(request.request_id) or InferResult(request.request_id, "1", {})

    def ids(self) -> list[list[str]]:
        return [[r.request_id for r in call.requests] for call in self.calls]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def busy(pool: Pool, forwarder: Forwarder, target: Target = MINILM) -> list[asyncio.Task[InferResult]]:
    """Fill the lane so that what comes next has to gather: as many calls as may be out."""
    pool.gate.clear()
    tasks = []
    for n_needed in lanes.NEEDED:
        tasks += [asyncio.create_task(forwarder.forward(target, request("busy"), NEVER)) for _ in range(n_needed)]
        await settle()
    return tasks


def one_a_second(pool: Pool, clock: Clock) -> Callable[[Call], Iterator[list[tuple[int, Outcome]]]]:
    """Return what, in place of a pool's `chunks`, answers the requests of a call one by one."""

    def chunks(call: Call) -> Iterator[list[tuple[int, Outcome]]]:
        for i, asked in enumerate(call.requests):
            clock.now += 1.0
            yield [(i, pool.answer(asked))]

    return chunks
