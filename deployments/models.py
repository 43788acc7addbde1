"""Which models a replica serves: a Pool's user_config applied to its residency, without ever breaking what works.

Each entry goes its own way: a new model is offered at once, a changed one is made ready beside the old and then takes
its place, a wrong one is listed with its reason while its previous configuration serves on, a removed one answers for
`drain_s` more. `configure` never raises and never awaits a load. Used by `deployments.replica`.
"""

import asyncio
import contextvars
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from deployments.discovery import all_versions
from deployments.engines import expected_signature
from deployments.entries import usable
from deployments.errors import ModelNotFound, ModelUnavailable, ServeError
from deployments.generating import AdapterModel, GeneratingModel, Resident
from deployments.orders import Orders, Verb, as_ordered
from deployments.residency import Residency
from deployments.slot import Loader
from deployments.spec import ModelSpec, PoolConfig, parse_models
from deployments.table_entry import Entry
from deployments.types import ModelState, ModelStatus
from deployments.versions import offered

logger = logging.getLogger(__name__)
_RETRY_S = 1.0
_UNLOADED = "unloaded"  # Triton's word for it


class ModelTable:
    """The models of one replica."""

    def __init__(self, residency: Residency[Resident], loader: Loader[Resident]) -> None:
        self._residency = residency
        self._loader = loader
        self._entries: dict[str, Entry] = {}
        self._settings = PoolConfig()
        self._user_config: Any = {}
        self._refused: dict[str, str] = {}  # by the configuration itself
        self._failed: dict[str, str] = {}  # found out while making a change ready
        self._unloaded: frozenset[str] = frozenset()  # by order of an operator
        self._max_items: Mapping[str, int] = {}  # likewise
        residency.bases.base_of = lambda spec: None if spec.base is None else self.spec(spec.base)
        residency.bases.check = _check_adapter

    @property
    def rejected(self) -> Mapping[str, str]:
        """Configuration entries not in force, by key, with the reason."""
        return {**self._failed, **self._refused}

    def spec(self, key: str) -> ModelSpec:
        """Return the configuration in force for `name:version`. Raises ModelNotFound, ModelUnavailable."""
        entry = self._entries.get(key)
        if entry is None:
            raise ModelNotFound(f"model {key!r} is not in this pool")
        if key in self._unloaded:
            raise ModelUnavailable(f"model {key!r} was unloaded by an operator", reason=_UNLOADED)
        return entry.spec

    def obey(self, orders: Orders) -> None:
        """Hold models to what operators ordered: keep some in memory, take others out. Idempotent; never waits."""
        self._residency.device.kept = frozenset(key for key, order in orders.items() if order.verb is Verb.LOAD)
        unloaded = frozenset(key for key, order in orders.items() if order.verb is Verb.UNLOAD)
        max_items = {key: order.max_items for key, order in orders.items() if order.max_items}
        if max_items != self._max_items:
            self._max_items = max_items
            self.configure(self._user_config)
        if unloaded == self._unloaded:
            return
        before, self._unloaded = self._unloaded, unloaded
        for key in self._entries.keys() & (unloaded - before):
            self._take_out(self._entries[key])
        for key in self._entries.keys() & (before - unloaded):
            self._take_over(self._entries[key], self._entries[key].spec)
        for entry in self._entries.values():
            if entry.spec.base in before - unloaded:  # it went with its base
                self._keep_pinned(entry)

    def _take_out(self, entry: Entry) -> None:
        wanted, previous = entry.pending or entry.spec, entry.spec
        self._stop(entry)
        self._residency.retire(previous)
        entry.spec, entry.signature = wanted, expected_signature(wanted)
        self._failed.pop(wanted.key, None)

    def discover(self) -> None:
        """Look again which versions there are in the folders of models whose versions are found there."""
        self.configure(self._user_config)

    def configure(self, user_config: Any) -> None:
        """Bring the table to what `user_config` says. Idempotent."""
        self._user_config = user_config
        settings, refused = parse_models(user_config)
        specs = usable(settings.models, refused)
        self._refused = refused
        for key, reason in refused.items():
            logger.error("configuration entry %s refused: %s", key, reason)
        if not isinstance(user_config, dict) or "models" in refused:
            return  # nothing can be read from it: everything stays as it was
        if "user_config" not in refused:
            self._settings = settings
            self._residency.tiers.max_loads, self._residency.max_held = settings.max_loads, settings.max_held
        specs = offered(specs, self._settings.versions)
        for key, spec in specs.items():
            self._apply(key, as_ordered(spec, self._max_items.get(key)))
        bases = {entry.spec.base for key, entry in self._entries.items() if key in specs or key in refused}
        for key in self._entries.keys() - specs.keys() - refused.keys() - bases:
            if all_versions(self._entries[key].spec.name) not in refused:
                self._remove(key)

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Return what this replica says of each model it offers, and of those on their way out."""
        return tuple(self._status(key, entry) for key, entry in self._entries.items())

    async def aclose(self) -> None:
        """Stop all background work and unload everything."""
        for entry in self._entries.values():
            self._stop(entry)
        await self._residency.aclose()

    def _apply(self, key: str, spec: ModelSpec) -> None:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(spec, expected_signature(spec))
            self._keep_pinned(entry)
            return
        if entry.removal is not None:  # removed a moment ago, and back
            entry.removal.cancel()
            entry.removal = None
        if entry.pending is not None and entry.pending.digest == spec.digest:
            entry.pending = spec
        elif entry.spec.digest == spec.digest or key in self._unloaded:
            if entry.spec.digest != spec.digest:
                entry.signature = expected_signature(spec)
            self._take_over(entry, spec)
        else:
            self._stop(entry)
            entry.pending = spec
            entry.task = self._spawn(self._replace(entry, spec))

    def _take_over(self, entry: Entry, spec: ModelSpec) -> None:
        """Put a configuration in force whose model needs no new load."""
        if entry.pending is not None:
            self._stop(entry)
        entry.spec = spec
        self._failed.pop(spec.key, None)
        model = self._residency.adopt(spec, is_retired=spec.key in self._unloaded)
        if model is not None:
            model.adopt(spec)
        self._keep_pinned(entry)

    def _keep_pinned(self, entry: Entry) -> None:
        is_wanted = entry.removal is None and entry.spec.key not in self._unloaded
        if entry.spec.pinned and is_wanted and entry.task is None:
            entry.task = self._spawn(self._load_pinned(entry))

    async def _load_pinned(self, entry: Entry) -> None:
        try:
            await self._until_ready(entry.spec, needs_load=True)
        finally:
            if entry.task is asyncio.current_task():  # else it was stopped, and another one is at work
                entry.task = None

    async def _replace(self, entry: Entry, spec: ModelSpec) -> None:
        """Make the new configuration ready, then put it in force and let the old one drain."""
        old = self._residency.peek(entry.spec)
        in_memory = old is not None and old.state is ModelState.READY
        self._residency.adopt(spec)  # it may have been in force before, and still drain
        await self._until_ready(spec, needs_load=in_memory or spec.pinned)
        previous, entry.spec = entry.spec, entry.pending or spec
        entry.pending = entry.task = None
        entry.signature = expected_signature(entry.spec)
        self._residency.retire(previous)
        self._keep_pinned(entry)  # it may have been pinned only meanwhile
        logger.info("model %s now runs its new configuration", spec.key)

    async def _until_ready(self, spec: ModelSpec, *, needs_load: bool) -> None:
        """Load the model (or at least fetch and check its files), again and again until it works."""
        while True:
            try:
                if needs_load:
                    async with self._residency.lease(spec):
                        pass
                else:
                    await self._loader.estimate(spec)
            except ServeError as exc:
                self._failed[spec.key] = str(exc.details.get("reason", exc.message))
                logger.error("model %s is not ready: %s", spec.key, exc.message)
                await asyncio.sleep(max(exc.retry_after_s or 0.0, _RETRY_S))
            else:
                self._failed.pop(spec.key, None)
                return

    def _stop(self, entry: Entry) -> None:
        """Give up what is being done for an entry; what was to take over leaves memory."""
        pending = entry.stop()
        if pending is not None and pending.digest != entry.spec.digest:
            self._residency.retire(pending)

    def _remove(self, key: str) -> None:
        entry = self._entries[key]
        self._failed.pop(key, None)
        if entry.removal is None:
            self._stop(entry)
            loop = asyncio.get_running_loop()
            entry.removal = loop.call_later(self._settings.drain_s, self._forget, key)

    def _forget(self, key: str) -> None:
        self._residency.retire(self._entries.pop(key).spec)

    def _status(self, key: str, entry: Entry) -> ModelStatus:
        return entry.status(
            self._residency.peek(entry.spec),
            barred=self._barred(entry),
            reason=self.rejected.get(key, ""),
            wait_s=self._residency.wait_s(entry.spec),
            max_held=self._settings.max_held,
        )

    def _barred(self, entry: Entry) -> str:
        """Return why operators' orders keep a model out, "" if none does: an adapter goes with its base."""
        if entry.spec.key in self._unloaded:
            return _UNLOADED
        return f"its base {entry.spec.base!r} was unloaded" if entry.spec.base in self._unloaded else ""

    @staticmethod
    def _spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


def _check_adapter(base: Resident, adapter: Resident) -> None:
    """Raise ModelUnavailable if an adapter was made for another model than its base."""
    if not isinstance(base, GeneratingModel):
        raise ModelUnavailable(f"base {base.spec.key!r} generates no text", reason="its base generates no text")
    if isinstance(adapter, AdapterModel):
        base.through(adapter)
