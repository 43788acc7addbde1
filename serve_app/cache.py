"""Answers kept item by item: a request of 32 texts of which 30 are known computes 2.

A layer of `gateway.py` around everything that computes. Its keys hold all that decides an answer (`cache_keys.py`): a
new version or a changed configuration is another key, so a flip leaves nothing to throw away. Equal items in flight
are computed once; whoever waited for one that came to nothing (its asker left, or was refused for another item)
computes it himself.

    look up ─ known ──────────────────────────────┐
            ├ in flight ─ wait ─ came to nothing ─┤ compute
            └ missing ─ compute, for all who join ┴─ merge by row
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from deployments.errors import DeadlineExceeded, InvalidInput
from deployments.types import MONOTONIC, Clock, InferResult, ModelStatus, Timings
from serve_app.cache_keys import Keys, keys_of
from serve_app.cache_rows import merge, reduce, split
from serve_app.cache_store import Entry, Store
from serve_app.config import EndpointConfig
from serve_app.policies import Answer, Work
from serve_app.traffic_metrics import TrafficMetrics


@dataclass(eq=False, slots=True)
class _Flight:
    """Rows that one request computes now; others may wait for them."""

    done: asyncio.Future[Mapping[bytes, Entry]] | None = None  # made by the first who waits

    def joined(self) -> asyncio.Future[Mapping[bytes, Entry]]:
        """Return what will hold the rows; without those that came to nothing."""
        if self.done is None:
            self.done = asyncio.get_running_loop().create_future()
        return self.done


@dataclass(slots=True)
class _Found:
    """Where the items of one request were found; `missing` are the first rows that hold them."""

    known: dict[bytes, Entry] = field(default_factory=dict)
    joined: dict[bytes, _Flight] = field(default_factory=dict)
    missing: dict[bytes, int] = field(default_factory=dict)


class ResponseCache:
    """The answers one ingress replica keeps."""

    def __init__(self, metrics: TrafficMetrics, clock: Clock = MONOTONIC) -> None:
        self._metrics = metrics
        self._clock = clock
        self._flights: dict[bytes, _Flight] = {}
        self.store = Store(clock)
        metrics.watch_cache(lambda: self.store.size_bytes, lambda: len(self.store))

    def configure(self, config: EndpointConfig) -> None:
        """Set how much may be kept."""
        self.store.resize(config.cache.max_bytes)

    async def answer(self, work: Work, compute: Answer) -> InferResult:
        """Answer from what is known, and compute what is not.

        Raises:
            ServeError: whatever computing raised, about this request as it came.
            DeadlineExceeded: an item that another request computes was not ready in time.
        """
        model = work.plan.primary
        if model.cache_ttl_s is None or not self.store.max_bytes:
            return await compute(work)
        wish = work.context.metadata.get("cache-control", "")
        started = self._clock()
        keys = keys_of(model, work.request) if "no-store" not in wish else None
        if keys is None:
            work.context.headers["x-cache"] = "bypass"
            return await compute(work)
        found = self._look_up(keys, reads="no-cache" not in wish)
        work.context.phases["cache"] = self._clock() - started
        self._report(work, keys, found)
        is_all_missing = len(found.missing) == len(keys.keys)
        try:
            if is_all_missing:
                return (await self._compute(work, keys, found.missing, compute))[0]
            return await self._complete(work, keys, found, compute)
        except InvalidInput:
            if is_all_missing:
                raise
            return await compute(work)  # the reduced request's error counts its own rows: let it name the client's

    def _look_up(self, keys: Keys, *, reads: bool) -> _Found:
        found = _Found()
        for row, key in enumerate(keys.keys):
            if key in found.known or key in found.joined or key in found.missing:
                continue
            if reads and (entry := self.store.get(key)) is not None:
                found.known[key] = entry
            elif reads and (flight := self._flights.get(key)) is not None:
                found.joined[key] = flight
            else:
                found.missing[key] = row
        return found

    async def _complete(self, work: Work, keys: Keys, found: _Found, compute: Answer) -> InferResult:
        entries = dict(found.known)
        timings = Timings()
        if found.missing:
            result, computed = await self._compute(work, keys, found.missing, compute)
            entries.update(computed)
            timings = result.timings
        if found.joined:
            entries.update(await self._join(found.joined, work.deadline))
            lost = {key: row for row, key in enumerate(keys.keys) if key in found.joined and key not in entries}
            if lost:
                result, computed = await self._compute(work, keys, lost, compute)
                entries.update(computed)
                timings = result.timings
        merged = None
        if all(key in entries for key in keys.keys):
            merged = merge(work.plan.primary, work.request, keys, [entries[key] for key in keys.keys], timings)
        return merged if merged is not None else await compute(work)

    async def _compute(
        self, work: Work, keys: Keys, missing: Mapping[bytes, int], compute: Answer
    ) -> tuple[InferResult, dict[bytes, Entry]]:
        """Compute rows for this request and for whoever joins meanwhile."""
        mine = _Flight()
        self._flights.update(dict.fromkeys(missing, mine))
        entries: dict[bytes, Entry] = {}
        try:
            if len(missing) < len(keys.keys):
                work = replace(work, request=reduce(work.request, keys, list(missing.values())))
            result = await compute(work)
            rows = split(result, keys, len(missing))
            entries = dict(zip(missing, rows, strict=True)) if rows else {}
            self._keep(work.plan.primary, result, entries)
            return result, entries
        finally:
            for key in missing:
                if self._flights.get(key) is mine:
                    del self._flights[key]
            if mine.done is not None:
                mine.done.set_result(entries)

    async def _join(self, flights: Mapping[bytes, _Flight], deadline: float) -> dict[bytes, Entry]:
        """Wait for items that other requests compute; those that came to nothing are left out."""
        # NOTE: `wait`, not `gather`: this request's end must not cancel what others wait for.
        waiting = {flight: flight.joined() for flight in flights.values()}
        _, late = await asyncio.wait(set(waiting.values()), timeout=max(deadline - self._clock(), 0.0))
        if late:
            raise DeadlineExceeded("an equal request under way was not answered in time")
        return {key: entry for key, flight in flights.items() if (entry := waiting[flight].result().get(key))}

    def _keep(self, model: ModelStatus, result: InferResult, entries: Mapping[bytes, Entry]) -> None:
        # A replica may still, or already, run another configuration than the one the keys were made for.
        if model.cache_ttl_s is None or result.digest != model.digest:
            return
        n_evicted = self.store.n_evicted
        for key, entry in entries.items():
            self.store.put(key, entry, model.cache_ttl_s)
        if self.store.n_evicted > n_evicted:
            self._metrics.evicted(self.store.n_evicted - n_evicted)

    def _report(self, work: Work, keys: Keys, found: _Found) -> None:
        n_known, n_joined, n_missing = _count(keys.keys, found)
        self._metrics.cache(work.plan.primary, n_known, n_joined, n_missing)
        headers = work.context.headers
        if n_missing:
            headers["x-cache"] = "partial" if n_known + n_joined else "miss"
        else:
            headers["x-cache"] = "joined" if n_joined else "hit"
        headers["x-cache-items"] = f"{n_known + n_joined}/{len(keys.keys)}"


def _count(keys: Sequence[bytes], found: _Found) -> tuple[int, int, int]:
    if len(found.missing) == len(keys):
        return 0, 0, len(keys)
    n_known = sum(key in found.known for key in keys)
    n_joined = sum(key in found.joined for key in keys)
    return n_known, n_joined, len(keys) - n_known - n_joined
