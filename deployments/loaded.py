"""One model in memory: its engine, its batch queue, and the way of one request through both.

Built by `deployments.pool` when residency loads a model; knows nothing of budgets, replicas or Ray.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np

from deployments.batches import Done
from deployments.batching import BatchQueue
from deployments.chunks import Chunk
from deployments.engines.base import Engine, Tokenizing
from deployments.errors import EngineFailure, InvalidInput
from deployments.spec import ModelSpec
from deployments.tensors import check_inputs, check_output_names
from deployments.types import (
    MONOTONIC,
    Clock,
    Datatype,
    InferRequest,
    InferResult,
    Item,
    Operation,
    Signature,
    Tensors,
    TensorSpec,
    Timings,
    Usage,
)
from deployments.worker import Worker

_QUICK_ITEMS = 16
_SMOOTHING = 0.1  # weight of the newest request in the running mean of what one costs
_TOKENIZER = {
    Operation.TOKENIZE: Signature((TensorSpec("text", Datatype.BYTES, (-1,)),), ()),
    Operation.DECODE: Signature((TensorSpec("ids", Datatype.BYTES, (-1,)),), ()),
}


class LoadedModel:
    """An engine behind its queue. `text` prepares and finishes requests, but for those where a hop would cost more."""

    def __init__(
        self, spec: ModelSpec, engine: Engine, queue: BatchQueue, text: Worker, clock: Clock = MONOTONIC
    ) -> None:
        self.spec = spec
        self.engine = engine
        self.queue = queue
        self._text = text
        self._quick_bytes: int = getattr(engine, "quick_bytes", 0)
        self._cost_per_request = 0.0
        self._clock = clock

    def adopt(self, spec: ModelSpec) -> None:
        """Take over a configuration that needs no load: limits, weight, deadlines."""
        self.spec = spec
        self.queue.limits = spec.batch
        self.queue.device.weight = spec.weight

    def waiting_s(self, upstream: int = 0) -> float:
        """Predicted seconds of the work that waits here, and of `upstream` requests that wait to be sent here."""
        return self.queue.waiting_s + self.queue.predict_s(upstream, upstream * self._cost_per_request)

    async def infer(self, request: InferRequest, deadline: float, load_s: float = 0.0) -> InferResult:
        """Answer one request; `deadline` is on this object's clock.

        Raises:
            ServeError: whatever was wrong with this request; never because of another one.
        """
        if request.operation is not Operation.INFER:
            return await self._ask_tokenizer(request, load_s)
        started = self._clock()
        is_quick = request.n_items <= _QUICK_ITEMS and request.size_bytes <= self._quick_bytes
        items = self._prepare(request) if is_quick else await self._text.run(self._prepare, request)
        self._learn(items)
        prepared = self._clock()
        done = await _all(self.queue.submit(items, deadline, request.tenant, request.priority, request.trace))
        ran = self._clock()
        found = [d.output for d in done]
        outputs = self._finish(request, found) if is_quick else await self._text.run(self._finish, request, found)
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

    async def _ask_tokenizer(self, request: InferRequest, load_s: float) -> InferResult:
        """Answer without the device, and so without its queue."""
        started = self._clock()
        outputs = await self._text.run(self._operate, request)
        timings = Timings(load_s=load_s, prepare_s=self._clock() - started)
        usage = Usage(n_items=request.n_items)  # no tokens: the model has read none
        return InferResult(self.spec.name, self.spec.version, outputs, usage, timings, self.spec.digest)

    def _operate(self, request: InferRequest) -> Tensors:
        if not isinstance(self.engine, Tokenizing):
            raise InvalidInput(f"model {self.spec.name!r} has no tokenizer that can be asked alone", field="model")
        check_inputs(request.inputs, _TOKENIZER[request.operation], self.spec.name)
        answer = self.engine.tokenize if request.operation is Operation.TOKENIZE else self.engine.decode
        return answer(request)

    def _prepare(self, request: InferRequest) -> list[Item]:
        check_inputs(request.inputs, self.engine.signature, self.spec.name)
        check_output_names(request.outputs or (), self.engine.signature, self.spec.name)
        return self.engine.prepare(request)

    def _finish(self, request: InferRequest, outputs: Sequence[Any]) -> Tensors:
        tensors = self.engine.finish(request, outputs)
        odd = [name for name, array in tensors.items() if not isinstance(array, np.ndarray)]
        if odd:
            raise EngineFailure(f"the engine gave output {odd[0]!r} as something else than a numpy array")
        return tensors if request.outputs is None else {name: tensors[name] for name in request.outputs}

    def _learn(self, items: Sequence[Item]) -> None:
        sample = sum(item.cost for item in items)
        self._cost_per_request += (sample - self._cost_per_request) * (_SMOOTHING if self._cost_per_request else 1.0)


async def _all(futures: list[asyncio.Future[Done]]) -> list[Done]:
    """Wait for every item of a request; the first error, or the caller leaving, withdraws the rest."""
    try:
        if len(futures) == 1:
            return [await futures[0]]
        return list(await asyncio.gather(*futures))
    finally:
        for future in futures:
            future.cancel()
            if future.done() and not future.cancelled():
                future.exception()  # seen: an error that nobody reads would be logged as lost
