"""From a model entry to a model in memory and back: files, engine, queue. The `Loader` of a replica's residency.

All that blocks runs in threads: fetching and loading in the default executor, running in the device's one thread.
"""

import asyncio
import gc
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeAlias, cast

from deployments.batching import BatchQueue, RunBatch
from deployments.chunks import GENERATIVE_TASKS
from deployments.engines import load_engine
from deployments.engines.base import Engine
from deployments.generating import GeneratingModel, Resident
from deployments.generation import Generator, Job, StepReport
from deployments.loaded import LoadedModel
from deployments.metrics import PoolMetrics
from deployments.sources import fetch, weight_bytes
from deployments.spec import ModelSpec
from deployments.stepper import RunStep, Stepper
from deployments.turns import Turn, Turns
from deployments.types import MONOTONIC, Clock, Item

logger = logging.getLogger(__name__)

Instrument: TypeAlias = Callable[[ModelSpec, RunBatch], RunBatch]


class EngineLoader:
    """Loads engines onto one device and puts a queue before each."""

    def __init__(
        self,
        device: str,
        cache_dir: Path,
        device_thread: Executor,
        text_thread: Executor,
        metrics: PoolMetrics,
        instrument: Instrument = lambda _, run: run,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._device = device
        self._cache_dir = cache_dir
        self._device_thread = device_thread
        self._text_thread = text_thread
        self._metrics = metrics
        self._instrument = instrument
        self._clock = clock
        self._turns = Turns(clock)  # whose batch may run on the device

    async def estimate(self, spec: ModelSpec) -> int:
        """Fetch the model's files, check them, and return the bytes of its weights."""
        return await asyncio.to_thread(lambda: weight_bytes(self._fetch(spec)))

    async def load(self, spec: ModelSpec) -> Resident:
        """Load and warm up the engine."""
        started = self._clock()
        try:
            engine = await asyncio.to_thread(self._load, spec)
        except Exception:
            self._metrics.loaded(spec, self._clock() - started, is_failed=True)
            raise
        self._metrics.loaded(spec, self._clock() - started, is_failed=False)
        logger.info("model %s loaded in %.2f s", spec.key, self._clock() - started)
        turn = self._turns.of(spec.key, spec.weight)
        if spec.task in GENERATIVE_TASKS and hasattr(engine, "step"):  # a custom engine may also answer in one piece
            return self._generating(spec, cast(Generator, engine), turn)
        run = self._instrument(spec, self._on_device(engine))
        queue = BatchQueue(
            run,
            spec.batch,
            turn,
            self._clock,
            lambda record: self._metrics.batch(spec, record),
            is_packed=getattr(engine, "is_packed", False),
        )
        return LoadedModel(spec, engine, queue, self._text_thread, self._clock)

    def size_bytes(self, model: Resident) -> int:
        """Return the bytes a loaded model takes: weights, and the cache of one that generates."""
        return model.engine.size_bytes()

    async def unload(self, model: Resident) -> None:
        """Drop the weights; a model that will not go quietly is logged, never kept."""
        try:
            await asyncio.to_thread(model.engine.close)
        except Exception:
            logger.exception("model %s raised while it was closed", model.spec.key)
        await asyncio.to_thread(gc.collect)
        self._metrics.unloaded(model.spec)
        logger.info("model %s unloaded", model.spec.key)

    def _fetch(self, spec: ModelSpec) -> Path:
        return fetch(spec, self._cache_dir)

    def _load(self, spec: ModelSpec) -> Engine:
        engine = load_engine(self._fetch(spec), spec, self._device)
        engine.warm_up()
        return engine

    def _generating(self, spec: ModelSpec, engine: Generator, turn: Turn) -> GeneratingModel:
        queue = Stepper(
            self._stepping(engine),
            spec.batch,
            turn,
            self._clock,
            lambda report, step_s: self._metrics.step(spec, report, step_s),
        )
        return GeneratingModel(
            spec,
            engine,
            queue,
            self._text_thread,
            self._clock,
            lambda usage, timings: self._metrics.generated(spec, usage, timings),
        )

    def _stepping(self, engine: Generator) -> RunStep:
        async def step(joining: Sequence[Job], leaving: Sequence[Job]) -> StepReport:
            return await asyncio.get_running_loop().run_in_executor(self._device_thread, engine.step, joining, leaving)

        return step

    def _on_device(self, engine: Engine) -> RunBatch:
        async def run(items: list[Item]) -> Sequence[Any]:
            return await asyncio.get_running_loop().run_in_executor(self._device_thread, engine.run, items)

        return run
