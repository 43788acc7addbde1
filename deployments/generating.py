"""One generating model in memory: its engine, its stepper, and the way of one request through both.

The counterpart of `deployments.loaded` for models that answer token by token; built by `deployments.loader`.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias

from deployments.chunks import Chunk, collect
from deployments.errors import InvalidInput
from deployments.generation import Adapter, Delta, Generator, Job
from deployments.loaded import LoadedModel
from deployments.spec import ModelSpec
from deployments.stepper import Stepper
from deployments.tensors import check_inputs, check_output_names
from deployments.types import MONOTONIC, Clock, InferRequest, InferResult, Operation, Timings, Usage
from deployments.worker import Worker


class GeneratingModel:
    """An engine behind its stepper. `text` is the thread that prepares requests; `observe` sees finished ones."""

    def __init__(
        self,
        spec: ModelSpec,
        engine: Generator,
        queue: Stepper,
        text: Worker,
        clock: Clock = MONOTONIC,
        observe: Callable[[ModelSpec, Usage, Timings], None] = lambda *_: None,
        adapter: Adapter | None = None,
    ) -> None:
        self.spec = spec
        self.engine = engine
        self.queue = queue
        self._text = text
        self._clock = clock
        self._observe = observe
        self._adapter = adapter

    def adopt(self, spec: ModelSpec) -> None:
        """Take over a configuration that needs no load: limits, weight, deadlines."""
        self.spec = spec
        self.queue.limits = spec.batch
        self.engine.adopt(spec)
        self.queue.device.weight = spec.weight

    def waiting_s(self, upstream: int = 0) -> float:
        """Predicted seconds of the work that waits here, and of `upstream` requests that wait to be sent here."""
        return self.queue.waiting_s * (1 + upstream / max(self.queue.n_waiting, 1))

    def through(self, adapter: "AdapterModel") -> "GeneratingModel":
        """Return this model as it speaks through an adapter. Raises ModelUnavailable if that was made for another."""
        self.engine.check_adapter(adapter.engine)
        return GeneratingModel(
            adapter.spec, self.engine, self.queue, self._text, self._clock, self._observe, adapter.engine
        )

    async def stream(
        self, request: InferRequest, deadline: float, load_s: float = 0.0
    ) -> AsyncGenerator[list[Chunk], None]:
        """Yield the answer as it is generated, what is ready together in one list; close it to stop.

        Raises:
            ServeError: whatever was wrong with this request; never because of another one.
        """
        started = self._clock()
        jobs = await self._text.run(self._prepare, request)
        prepared = self._clock()
        first = 0.0
        n_new, n_open = 0, len(jobs)
        async with aclosing(self.queue.stream(jobs, deadline)) as steps:
            async for deltas in steps:
                first = first or self._clock()
                n_new += sum(delta.n_tokens for delta in deltas)
                n_open -= sum(delta.is_last for delta in deltas)
                usage = timings = None
                if not n_open:
                    usage = Usage(request.n_items, _n_prompt_tokens(jobs) + n_new, n_new)
                    timings = Timings(load_s, prepared - started, first - prepared, self._clock() - first)
                    self._observe(self.spec, usage, timings)
                *others, last = deltas
                yield [*map(self._chunk, others), self._chunk(last, usage, timings)]

    async def infer(self, request: InferRequest, deadline: float, load_s: float = 0.0) -> InferResult:
        """Answer one request with all of its text at once."""
        async with aclosing(self.stream(request, deadline, load_s)) as chunks:
            result = await collect(chunks)
        if request.outputs is None:
            return result
        return replace(result, outputs={name: result.outputs[name] for name in request.outputs})

    def _prepare(self, request: InferRequest) -> list[Job]:
        if request.operation is not Operation.INFER:
            raise InvalidInput(
                f"model {self.spec.name!r} generates; its tokenizer cannot be asked alone", field="model"
            )
        check_inputs(request.inputs, self.engine.signature, self.spec.name)
        check_output_names(request.outputs or (), self.engine.signature, self.spec.name)
        jobs = self.engine.prepare(request)
        for job in jobs:
            job.adapter = self._adapter
        return jobs

    def _chunk(self, delta: Delta, usage: Usage | None = None, timings: Timings | None = None) -> Chunk:
        return Chunk(
            model=self.spec.name,
            version=self.spec.version,
            index=delta.job.index,
            text=delta.text,
            n_tokens=delta.n_tokens,
            logprobs=delta.logprobs,
            finish=delta.finish,
            usage=usage,
            timings=timings,
        )


class AdapterModel:
    """A LoRA adapter in memory; the work waits in the queue of its base model, which answers for it."""

    def __init__(self, spec: ModelSpec, engine: Adapter, queue: Stepper) -> None:
        self.spec = spec
        self.engine = engine
        self.queue = queue  # always empty

    def adopt(self, spec: ModelSpec) -> None:
        """Take over a configuration that needs no load."""
        self.spec = spec

    def waiting_s(self, upstream: int = 0) -> float:
        """Return 0.0: the work is counted where it waits."""
        return 0.0


Resident: TypeAlias = LoadedModel | GeneratingModel | AdapterModel  # what residency keeps in memory


def _n_prompt_tokens(jobs: Sequence[Job]) -> int:
    """Count each prompt once, however many sequences were made of it."""
    return sum(len(prompt) for prompt in {id(job.prompt): job.prompt for job in jobs}.values())
