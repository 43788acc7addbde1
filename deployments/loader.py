"""From a model entry to a model in memory and back: files, engine, queue. The `Loader` of a replica's residency.

All that blocks runs in threads: loading in the default executor, running in the device's one thread, and downloading in
threads of its own, so that a store which does not answer holds up no model that is here.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from deployments.batches import RunBatch
from deployments.batching import BatchQueue
from deployments.chunks import GENERATIVE_TASKS
from deployments.engines import cache_bytes, give_back, load_engine, run_measured
from deployments.engines.base import Engine, Parkable
from deployments.errors import ModelUnavailable
from deployments.generating import AdapterModel, GeneratingModel, Resident
from deployments.generation import Generator, Job, StepReport
from deployments.loaded import LoadedModel
from deployments.metrics import PoolMetrics
from deployments.settling import Settling
from deployments.sources import fetch, weight_files
from deployments.spec import ModelSpec
from deployments.stepper import RunStep, Stepper
from deployments.tracing import batch_span
from deployments.turns import Turn, Turns
from deployments.types import MONOTONIC, Clock, Item
from deployments.weights import expected_bytes
from deployments.worker import Worker

logger = logging.getLogger(__name__)
_MOMENT_S = 1.0
_DOWNLOADS = 16  # at once
_LARGER = 1.25  # a batch of so many times the tokens of any before is measured: few are, and each tells something new

R = TypeVar("R")
Instrument: TypeAlias = Callable[[ModelSpec, RunBatch], RunBatch]


class EngineLoader:
    """Loads engines onto one device and puts a queue before each."""

    def __init__(
        self,
        device: str,
        cache_dir: Path,
        device_thread: Executor,
        text: Worker,
        metrics: PoolMetrics,
        instrument: Instrument = lambda _, run: run,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._device = device
        self._cache_dir = cache_dir
        self._device_thread = device_thread
        self._text = text
        self._metrics = metrics
        self._instrument = instrument
        self._clock = clock
        self._downloads = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="download")
        self._fetched: dict[tuple[str, str], Path] = {}  # by key and digest: what is going to be loaded
        self._settling = Settling(device_thread)
        self._turns = Turns(clock)  # whose batch may run on the device
        self._n_moves = 0  # loads, unloads and the like begun; while one runs, memory says nothing about batches
        self._n_moving = 0
        self._generators: list[tuple[str, Generator]] = []  # in memory; of a key more than one while it is replaced
        self._giving_back: asyncio.TimerHandle | None = None
        self.learn_peak: Callable[[ModelSpec, int], None] = lambda *_: None  # told what batches take besides weights

    @property
    def held_s(self) -> float:
        """Seconds the device has worked in all."""
        return self._turns.held_s

    async def estimate(self, spec: ModelSpec) -> int:
        """Fetch the model's files, check them, and return the bytes of its weights and its cache."""
        threads = self._downloads if spec.source.hub or spec.source.url else None
        path = await asyncio.get_running_loop().run_in_executor(threads, fetch, spec, self._cache_dir)
        self._fetched[spec.key, spec.digest] = path
        return await asyncio.to_thread(
            lambda: expected_bytes(weight_files(path), spec.dtype, self._device) + cache_bytes(spec)
        )

    async def load(self, spec: ModelSpec) -> Resident:
        """Load and warm up the engine."""
        started = self._clock()
        try:
            engine = await self._moving(self._load, spec)
            if spec.base is not None:
                self._check_fits(spec.base, engine)
        except Exception:
            self._metrics.loaded(spec, self._clock() - started, is_failed=True)
            raise
        self._metrics.loaded(spec, self._clock() - started, is_failed=False)
        logger.info("model %s loaded in %.2f s", spec.key, self._clock() - started)
        turn = self._turns.of(spec.key, spec.weight)
        if spec.base is not None:
            return AdapterModel(spec, engine, self._stepper(spec, cast(Generator, engine), turn))
        if spec.task in GENERATIVE_TASKS and hasattr(engine, "step"):  # a custom engine may also answer in one piece
            return self._generating(spec, cast(Generator, engine), turn)
        run = self._instrument(spec, self._on_device(spec, engine))
        queue = BatchQueue(
            run,
            spec.batch,
            turn,
            self._clock,
            lambda record: self._metrics.batch(spec, record),
            is_packed=lambda: getattr(engine, "is_packed", False),
            span=partial(batch_span, spec.key),
        )
        return LoadedModel(spec, engine, queue, self._text, self._clock)

    def size_bytes(self, model: Resident) -> int:
        """Return the bytes a loaded model takes: weights, and the cache of one that generates."""
        return model.engine.size_bytes()

    async def unload(self, model: Resident) -> None:
        """Drop the weights; a model that will not go quietly is logged, never kept."""
        await self._settling.leave(model.engine)
        self._generators = [(key, engine) for key, engine in self._generators if engine is not model.engine]
        try:
            await self._moving(model.engine.close)
        except Exception:
            logger.exception("model %s raised while it was closed", model.spec.key)
        self._give_back_soon()
        self._metrics.unloaded(model.spec)
        logger.info("model %s unloaded", model.spec.key)

    def parked_bytes(self, model: Resident) -> int | None:
        """Return the bytes of host RAM (or of the page cache) a model takes when parked; None if its engine cannot."""
        return model.engine.size_bytes() if isinstance(model.engine, Parkable) else None

    async def park(self, model: Resident) -> None:
        """Take the weights off the device, but keep what makes coming back fast."""
        await self._settling.leave(model.engine)
        if isinstance(model.engine, Parkable):
            await self._moving(model.engine.park)
            self._give_back_soon()
        self._metrics.parked(model.spec)

    async def unpark(self, model: Resident) -> None:
        """Bring the weights back onto the device."""
        started = self._clock()
        if isinstance(model.engine, Parkable):
            await self._moving(model.engine.unpark)
        self._metrics.unparked(model.spec, self._clock() - started)

    def _load(self, spec: ModelSpec) -> Engine:
        path = self._fetched.pop((spec.key, spec.digest), None) or fetch(spec, self._cache_dir)
        engine = load_engine(path, spec, self._device)
        engine.warm_up()
        return engine

    def _generating(self, spec: ModelSpec, engine: Generator, turn: Turn) -> GeneratingModel:
        self._generators.append((spec.key, engine))
        queue = self._stepper(spec, engine, turn)
        return GeneratingModel(spec, engine, queue, self._text, self._clock, self._metrics.generated)

    def _check_fits(self, base: str, adapter: Engine) -> None:
        """Check that an adapter was made for its base, which is here before it. Raises ModelUnavailable."""
        misfit: ModelUnavailable | None = None
        for engine in [engine for key, engine in self._generators if key == base]:
            try:
                engine.check_adapter(adapter)
            except ModelUnavailable as exc:
                misfit = exc
            else:
                return
        if misfit is not None:
            adapter.close()
            raise misfit

    def _stepper(self, spec: ModelSpec, engine: Generator, turn: Turn) -> Stepper:
        def observe(report: StepReport, step_s: float) -> None:
            self._metrics.step(spec, report, step_s)

        return Stepper(self._stepping(engine), spec.batch, turn, self._clock, observe)

    def _stepping(self, engine: Generator) -> RunStep:
        async def step(joining: Sequence[Job], leaving: Sequence[Job]) -> StepReport:
            return await asyncio.get_running_loop().run_in_executor(self._device_thread, engine.step, joining, leaving)

        return step

    def _give_back_soon(self) -> None:
        """Hand freed memory to the system, once for all models that leave within a moment, and in nobody's way."""
        if self._giving_back is None:
            self._giving_back = asyncio.get_running_loop().call_later(_MOMENT_S, self._give_back)

    def _give_back(self) -> None:
        self._giving_back = None
        asyncio.get_running_loop().run_in_executor(None, give_back)

    async def _moving(self, function: Callable[..., R], *args: object) -> R:
        self._n_moves += 1
        self._n_moving += 1
        try:
            return await asyncio.to_thread(function, *args)
        finally:
            self._n_moving -= 1

    def _on_device(self, spec: ModelSpec, engine: Engine) -> RunBatch:
        largest = 0.0  # tokens of the largest batch that has been measured

        async def run(items: list[Item]) -> Sequence[Any]:
            outputs = await run_batch(items)
            self._settling.answered(spec, engine)
            return outputs

        async def run_batch(items: list[Item]) -> Sequence[Any]:
            nonlocal largest
            loop, cost = asyncio.get_running_loop(), sum(item.cost for item in items)
            if cost < largest * _LARGER:
                return await loop.run_in_executor(self._device_thread, engine.run, items)
            n_moves, is_quiet = self._n_moves, not self._n_moving
            outputs, peak = await loop.run_in_executor(
                self._device_thread, run_measured, engine.run, items, self._device
            )
            if peak is not None and is_quiet and n_moves == self._n_moves:
                largest = cost
                self.learn_peak(spec, peak)
            return outputs

        return run
