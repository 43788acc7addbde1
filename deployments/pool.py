"""The `Pool` deployment: a `PoolReplica` behind Serve. Called by the ingress's forwarder, the catalog and Serve itself.

Batches formed by our queue run through `serve.batch`, so that Serve's own batch metrics keep working.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from inspect import signature
from typing import Any

from ray import serve

from deployments.batches import RunBatch
from deployments.chunks import Chunk
from deployments.engines import is_usable, set_up_process
from deployments.entries import import_code
from deployments.errors import EngineFailure, ServeError
from deployments.garbage import collect_seldom
from deployments.hop import Packed, pack_outcomes, unpack_requests
from deployments.logs import log_through_serve
from deployments.metrics import ReplicaMetrics
from deployments.orders import Orders
from deployments.replica import PoolReplica
from deployments.revisions import Revisions, brief
from deployments.spec import ModelSpec, PoolArgs
from deployments.statistics import ModelStatistics
from deployments.types import InferRequest, Item, PoolStatus


class Pool:
    """Keeps several models in memory and answers calls for any of them."""

    def __init__(self, args: PoolArgs) -> None:
        log_through_serve()
        collect_seldom()
        self._args = args
        set_up_process(args.threads)
        self._replica = PoolReplica(args, instrument=ServeBatches().instrument)
        self._revisions = Revisions()
        self._is_new = True

    async def reconfigure(self, user_config: Any) -> None:
        """Apply the user_config; never raises, never waits for a load (Serve would stop the replica)."""
        if self._is_new:  # nothing loads yet, and no request waits
            self._is_new = False
            await asyncio.to_thread(import_code, user_config)
        self._replica.configure(user_config)

    async def discover(self) -> None:
        """Look again for versions in the folders of models; broadcast to all replicas."""
        self._replica.discover()

    async def infer_many(
        self, key: str, packed: Packed, backlog: int = 0, sender: str = "", number: int = 0, copy: int = 0
    ) -> AsyncGenerator[tuple[list[int], Packed], None]:
        """Answer requests for the model `name:version`: yield their indices and outcomes as batches finish.

        `copy` is read by the router only.
        """
        async with aclosing(self._replica.infer_many(key, unpack_requests(packed), backlog, sender, number)) as news:
            async for some in news:
                yield [index for index, _ in some], pack_outcomes([outcome for _, outcome in some])

    async def infer_one(
        self, key: str, packed: Packed, backlog: int = 0, sender: str = "", number: int = 0, copy: int = 0
    ) -> Packed:
        """Answer the only request of a call: its outcome, or nothing if it was forgotten. `copy` as above."""
        async with aclosing(self._replica.infer_many(key, unpack_requests(packed), backlog, sender, number)) as news:
            return pack_outcomes([outcome async for some in news for _, outcome in some])

    async def forget(self, sender: str, calls: Mapping[int, Sequence[int]]) -> None:
        """Stop work on requests, by number of call, that `sender` says nobody waits for; broadcast to all replicas."""
        self._replica.forget(sender, calls)

    async def stream(self, key: str, request: InferRequest, copy: int = 0) -> AsyncGenerator[list[Chunk], None]:
        """Yield the answer of the generating model `name:version`, what is ready together in one list."""
        async with aclosing(self._replica.stream(key, request)) as chunks:
            async for ready in chunks:
                yield ready

    async def load(self, key: str, copy: int = 0) -> ServeError | None:
        """Have a model in memory; return why it cannot be. `copy` is read by the router only."""
        try:
            await self._replica.load(key)
        except ServeError as exc:
            return exc
        return None

    async def status(self, orders: Orders, known: Mapping[str, str]) -> PoolStatus:
        """Return what this replica offers, after it has heard what operators ordered.

        `known` are the revisions of models the asker was told, by replica: those it knows are left out.
        """
        self._replica.obey(orders)
        tag = serve.get_replica_context().replica_tag
        status = self._revisions.mark(replace(self._replica.status(), replicas=(tag,)))
        return brief(status, known.get(tag, ""))

    async def metrics(self) -> ReplicaMetrics:
        """Return this replica's metrics."""
        return ReplicaMetrics(serve.get_replica_context().replica_tag, self._replica.collect())

    async def statistics(self) -> dict[str, ModelStatistics]:
        """Return what this replica has counted, by `name:version`."""
        return self._replica.statistics()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Report to `deployments.autoscaling`: predicted seconds of waiting work, share of time at work."""
        return {"waiting_s": self._replica.waiting_s(), "busy": self._replica.busy()}

    async def check_health(self) -> None:
        """Raise if the device no longer works; Serve then replaces this replica."""
        if not await asyncio.to_thread(is_usable, self._args.device):
            raise RuntimeError(f"device {self._args.device} no longer works")

    async def __del__(self) -> None:
        await self._replica.aclose()


class ServeBatches:
    """Runs formed batches through `serve.batch`, one queue of Serve's per model.

    A whole batch is one item there, counted by its length (an eighth of the cost of an item each). The queues are
    kept while the replica lives: a dropped one is logged by asyncio as a destroyed task.
    """

    def __init__(self) -> None:
        self._functions: dict[str, Any] = {}

    def instrument(self, spec: ModelSpec, run: RunBatch) -> RunBatch:
        """Return `run` with Serve's metrics around it."""
        if spec.key not in self._functions:
            self._functions[spec.key] = _batched(spec.key, spec.batch.max_items)
        function = self._functions[spec.key]

        async def run_batch(items: list[Item]) -> Sequence[Any]:
            if len(items) > function._get_max_batch_size():
                function.set_max_batch_size(len(items))  # the model's limits were raised
            outputs: Sequence[Any] = await function((run, items))
            return outputs

        return run_batch


def _batched(name: str, max_items: int) -> Any:
    async def run_batches(batches: list[tuple[RunBatch, list[Item]]]) -> list[Sequence[Any]]:
        try:
            return [await run(items) for run, items in batches]
        except asyncio.CancelledError:
            # NOTE: serve.batch never answers its callers if this gets out.
            raise EngineFailure("the batch was cancelled") from None

    run_batches.__name__ = name  # the tag of Serve's batch metrics
    run_batches.__signature__ = signature(run_batches)  # type: ignore[attr-defined]  # Serve asks for it at each batch
    return serve.batch(
        max_batch_size=max_items,
        batch_wait_timeout_s=0,
        batch_size_fn=lambda batches: sum(len(items) for _, items in batches),
    )(run_batches)
