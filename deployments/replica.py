"""One pool replica without Ray: models in memory, requests answered. `deployments.pool` puts it behind Serve."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric

from deployments.alarms import Alarms, Limit
from deployments.chunks import Chunk
from deployments.errors import DeadlineExceeded, EngineFailure, ModelUnavailable, ServeError
from deployments.generating import AdapterModel, GeneratingModel, Resident
from deployments.loaded import LoadedModel
from deployments.loader import EngineLoader, Instrument
from deployments.metrics import MemoryNow, PoolMetrics
from deployments.models import ModelTable
from deployments.news import News
from deployments.orders import Orders
from deployments.residency import Residency
from deployments.spec import ModelSpec, PoolArgs
from deployments.statistics import ModelStatistics
from deployments.types import MONOTONIC, Clock, InferRequest, InferResult, ModelStatus, Outcome, PoolStatus
from deployments.upstream import Upstream
from deployments.worker import Worker

logger = logging.getLogger(__name__)


class PoolReplica:
    """Serves the models of one pool within one process."""

    def __init__(self, args: PoolArgs, instrument: Instrument = lambda _, run: run, clock: Clock = MONOTONIC) -> None:
        self._clock = clock
        self._alarms = Alarms(clock)
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._text = Worker("text")
        self._metrics = PoolMetrics()
        loader = EngineLoader(
            args.device,
            Path(args.cache_dir).expanduser(),
            self._device_thread,
            self._text,
            self._metrics,
            instrument,
            clock,
        )
        self._residency: Residency[Resident] = Residency(
            args.budget_bytes, loader, clock=clock, ram_bytes=args.ram_bytes
        )
        loader.learn_peak = self._residency.learn_peak
        self._table = ModelTable(self._residency, loader)
        self._upstream = Upstream(clock)
        self._loader = loader
        self._worked = (clock(), 0.0)  # when last asked, and how long the device had worked until then
        self._calls: dict[tuple[str, int], list[asyncio.Task[Outcome]]] = {}  # by sender and number

    def configure(self, user_config: Any) -> None:
        """Apply a Pool's user_config; never raises, never waits for a load."""
        self._table.configure(user_config)

    def discover(self) -> None:
        """Look again for versions in the folders of models."""
        self._table.discover()

    async def infer_many(
        self, key: str, requests: Sequence[InferRequest], backlog: int = 0, sender: str = "", number: int = 0
    ) -> AsyncGenerator[list[tuple[int, Outcome]], None]:
        """Answer requests for the model `name:version`, each on its own; yield outcomes as batches finish.

        `backlog` requests still wait at `sender`, whose call `number` this is.
        """
        self._upstream.heard(key, sender, backlog)
        if not requests:  # the forwarder warms a further copy of a hot model
            await self.load(key)
            return
        try:
            spec = self._table.spec(key)
        except ServeError as exc:
            yield [(index, exc) for index in range(len(requests))]
            return
        news = News(len(requests))
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._outcome(spec, request)) for request in requests]
        for index, task in enumerate(tasks):
            task.add_done_callback(partial(news.put, index))
        self._calls[sender, number] = tasks
        try:
            async for some in news:
                yield some
        finally:
            self._calls.pop((sender, number), None)
            for task in tasks:
                task.cancel()

    def forget(self, sender: str, calls: Mapping[int, Sequence[int]]) -> None:
        """Stop work on requests that nobody waits for, by number of call; of most calls another replica knows."""
        for number, indices in calls.items():
            tasks = self._calls.get((sender, number), ())
            for index in indices:
                if index < len(tasks):
                    tasks[index].cancel()

    async def stream(self, key: str, request: InferRequest) -> AsyncGenerator[list[Chunk], None]:
        """Yield a generating model's answer to one request, what is ready together in one list; close it to stop.

        Raises:
            ServeError: before the first piece, or later.
        """
        spec = self._table.spec(key)
        started = self._clock()
        timeout_s = min(request.timeout_s or spec.timeout_s, spec.timeout_s)
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(timeout_s):
                    model = await stack.enter_async_context(self._leased(spec))
                chunks = model.stream(request, started + timeout_s, load_s=self._clock() - started)
                async for ready in await stack.enter_async_context(aclosing(chunks)):
                    if (timings := ready[-1].timings) is not None:
                        self._metrics.request(spec, timings, self._clock() - started)
                    yield ready
        except ServeError:
            self._metrics.statistics.failed(key, self._clock() - started)
            raise
        except TimeoutError:
            self._metrics.statistics.failed(key, self._clock() - started)
            raise DeadlineExceeded(f"no answer within {timeout_s:.3g} s", timeout_s=timeout_s) from None
        except Exception as exc:
            raise _unexpected(spec, exc) from None

    async def load(self, key: str) -> None:
        """Have a model in memory. Raises ServeError."""
        async with self._residency.lease(self._table.spec(key)):
            pass

    def obey(self, orders: Orders) -> None:
        """Hold models to what operators ordered over the API."""
        self._table.obey(orders)

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Return what this replica says of its models."""
        return self._table.statuses()

    def status(self) -> PoolStatus:
        """Return what this replica offers."""
        return PoolStatus(
            models=self.statuses(),
            rejected=dict(self._table.rejected),
            n_replicas=1,
            resident_bytes=self._residency.used_bytes,
            budget_bytes=self._residency.device.budget_bytes,
            parked_bytes=self._residency.tiers.parked_bytes,
            ram_bytes=self._residency.tiers.ram_bytes,
        )

    def statistics(self) -> dict[str, ModelStatistics]:
        """Return what this replica has counted, by `name:version`."""
        return self._metrics.statistics.models

    def waiting_s(self) -> float:
        """Predicted seconds of work that waits here or upstream."""
        models = self._residency.models()
        return sum(model.waiting_s(self._upstream.n_waiting(model.spec.key)) for model in models)

    def busy(self) -> float:
        """Share of the time since it was last asked that the device worked."""
        (then, worked_s), now = self._worked, (self._clock(), self._loader.held_s)
        self._worked = now
        return min(1.0, (now[1] - worked_s) / max(now[0] - then, 1e-9))

    def collect(self) -> list[Metric]:
        """Return this replica's metrics as of now."""
        queues = {model.spec.key: model.queue.n_waiting for model in self._residency.models()}
        slots = self._residency.slots()
        memory = MemoryNow(
            budget_bytes=self._residency.device.budget_bytes,
            ram_bytes=self._residency.tiers.ram_bytes,
            parked_bytes=self._residency.tiers.parked_bytes,
            held={slot.spec.key: slot.n_held for slot in slots},
            peaks={slot.spec.key: slot.peak_bytes for slot in slots},
        )
        return self._metrics.collect(self.statuses(), queues, memory, len(self._table.rejected))

    async def aclose(self) -> None:
        """Unload everything and stop the threads."""
        await self._table.aclose()
        self._device_thread.shutdown(wait=False, cancel_futures=True)
        self._text.close()

    async def _outcome(self, spec: ModelSpec, request: InferRequest) -> Outcome:
        started = self._clock()
        outcome = await self._answer(spec, request)
        if isinstance(outcome, ServeError):
            self._metrics.statistics.failed(spec.key, self._clock() - started)
        return outcome

    async def _answer(self, spec: ModelSpec, request: InferRequest) -> Outcome:
        timeout_s = min(request.timeout_s or spec.timeout_s, spec.timeout_s)
        scope = Limit(self._alarms, self._clock() + timeout_s)
        try:
            async with scope:
                return await self._infer(spec, request, timeout_s)
        except ServeError as exc:
            return exc
        except TimeoutError as exc:
            if scope.is_over:
                return DeadlineExceeded(f"no answer within {timeout_s:.3g} s", timeout_s=timeout_s)
            return _unexpected(spec, exc)
        except Exception as exc:
            return _unexpected(spec, exc)

    async def _infer(self, spec: ModelSpec, request: InferRequest, timeout_s: float) -> InferResult:
        started = self._clock()
        async with self._leased(spec) as model:
            result = await model.infer(request, started + timeout_s, load_s=self._clock() - started)
        self._metrics.request(spec, result.timings, self._clock() - started)
        return result

    @asynccontextmanager
    async def _leased(self, spec: ModelSpec) -> AsyncIterator[LoadedModel | GeneratingModel]:
        """Hold the model that answers: for an adapter its base, and the adapter with it."""
        async with self._residency.lease(spec) as model:
            if not isinstance(model, AdapterModel):
                yield model
                return
            async with self._residency.lease(self._table.spec(spec.base or "")) as base:
                if not isinstance(base, GeneratingModel):
                    raise ModelUnavailable(f"base {spec.base!r} generates no text", reason="wrong base")
                yield base.through(model)


def _unexpected(spec: ModelSpec, exc: Exception) -> ServeError:
    logger.error("model %s failed on a request", spec.key, exc_info=exc)
    reason = f"{type(exc).__name__}: {exc}"[:300]
    return EngineFailure(f"the model failed on this input: {reason}", reason=reason)
