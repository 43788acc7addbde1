"""One model in memory: its engine, its batch queue, and the way of one request through both.

Built by `deployments.pool` when residency loads a model; knows nothing of budgets, replicas or Ray.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from deployments.batching import BatchQueue, Done
from deployments.chunks import Chunk
from deployments.engines.base import Engine
from deployments.errors import InvalidInput
from deployments.spec import ModelSpec
from deployments.tensors import check_inputs, check_output_names
from deployments.types import MONOTONIC, Clock, InferRequest, InferResult, Item, Tensors, Timings, Usage

R = TypeVar("R")


class LoadedModel:
    """An engine behind its queue. `text` is the thread that prepares and finishes requests."""

    def __init__(
        self, spec: ModelSpec, engine: Engine, queue: BatchQueue, text: Executor, clock: Clock = MONOTONIC
    ) -> None:
        self.spec = spec
        self.engine = engine
        self.queue = queue
        self._text = text
        self._clock = clock

    def adopt(self, spec: ModelSpec) -> None:
        """Take over a configuration that needs no load: limits, weight, deadlines."""
        self.spec = spec
        self.queue.limits = spec.batch
        self.queue.device.weight = spec.weight

    async def infer(self, request: InferRequest, deadline: float, load_s: float = 0.0) -> InferResult:
        """Answer one request; `deadline` is on this object's clock.

        Raises:
            ServeError: whatever was wrong with this request; never because of another one.
        """
        started = self._clock()
        items = await self._in_text_thread(self._prepare, request)
        prepared = self._clock()
        done = await _all(self.queue.submit(items, deadline, request.tenant, request.priority))
        ran = self._clock()
        outputs = await self._in_text_thread(self._finish, request, [d.output for d in done])
        return InferResult(
            model=self.spec.name,
            version=self.spec.version,
            outputs=outputs,
            usage=Usage(n_items=request.n_items, n_tokens=sum(item.cost for item in items)),
            timings=Timings(
                load_s=load_s,
                prepare_s=prepared - started,
                queue_s=max(d.queue_s for d in done),
                run_s=max(d.run_s for d in done),
                finish_s=self._clock() - ran,
            ),
            digest=self.spec.digest,
            item_tokens=tuple(item.cost for item in items) if self.spec.cache else (),
        )

    def stream(self, request: InferRequest, deadline: float, load_s: float = 0.0) -> AsyncGenerator[list[Chunk], None]:
        """Refuse: only generating models (`deployments.generating`) answer piece by piece."""
        raise InvalidInput(f"model {self.spec.name!r} does {self.spec.task}, which does not stream", field="model")

    def _prepare(self, request: InferRequest) -> list[Item]:
        check_inputs(request.inputs, self.engine.signature, self.spec.name)
        check_output_names(request.outputs or (), self.engine.signature, self.spec.name)
        return self.engine.prepare(request)

    def _finish(self, request: InferRequest, outputs: Sequence[Any]) -> Tensors:
        tensors = self.engine.finish(request, outputs)
        return tensors if request.outputs is None else {name: tensors[name] for name in request.outputs}

    def _in_text_thread(self, function: Callable[..., R], *args: object) -> Awaitable[R]:
        return asyncio.get_running_loop().run_in_executor(self._text, function, *args)


async def _all(futures: list[asyncio.Future[Done]]) -> list[Done]:
    """Wait for every item of a request; the first error, or the caller leaving, withdraws the rest."""
    try:
        return list(await asyncio.gather(*futures))
    finally:
        for future in futures:
            future.cancel()
            if future.done() and not future.cancelled():
                future.exception()  # seen: an error that nobody reads would be logged as lost
