"""One model of a replica's table: its configuration in force, what becomes of it, and what is said of it.

Written by `deployments.models` only.
"""

import asyncio
from dataclasses import dataclass, field

from deployments.engines import independent_rows
from deployments.generating import Resident
from deployments.slot import Slot
from deployments.spec import ModelSpec
from deployments.types import Facts, ModelState, ModelStatus, Signature


@dataclass(slots=True)
class Entry:
    """A model that is offered, or on its way out."""

    spec: ModelSpec
    signature: Signature
    labels: tuple[str, ...] = ()
    facts: Facts = field(default_factory=dict)
    pending: ModelSpec | None = None  # being made ready to take over
    task: asyncio.Task[None] | None = None  # loads a pinned model, or makes `pending` ready
    removal: asyncio.TimerHandle | None = None
    _said: tuple[tuple[object, ...], ModelStatus] | None = None  # while it was not in memory, and of what it was made

    def stop(self) -> ModelSpec | None:
        """Stop loading it, and making another configuration of it ready; return that one."""
        if self.task is not None:
            self.task.cancel()
        pending, self.task, self.pending = self.pending, None, None
        return pending

    def status(
        self, slot: Slot[Resident] | None, *, barred: str, reason: str, wait_s: float, max_held: int
    ) -> ModelStatus:
        """Return what there is to say of it.

        `barred` is why operators' orders keep it out, `reason` what was wrong with its configuration; "" if nothing.
        """
        if slot is not None and slot.model is not None:
            engine = slot.model.engine
            self.signature, self.labels = engine.signature, engine.labels
            self.facts = getattr(engine, "facts", {})
        state = slot.state if slot is not None else ModelState.UNLOADED
        if slot is not None and slot.error is not None:
            reason = str(slot.error.details.get("reason", slot.error.message))
        if barred:
            state, reason = ModelState.UNAVAILABLE, barred
        said = (self.spec, self.signature, self.labels, self.facts, state, reason, wait_s, max_held, self.removal)
        if slot is None and self._said is not None and said == self._said[0]:
            self._said = said, self._said[1]  # equal, and compared at a glance next time
            return self._said[1]
        status = ModelStatus(
            name=self.spec.name,
            version=self.spec.version,
            task=self.spec.task,
            signature=self.signature,
            state=state,
            pinned=self.spec.pinned and not barred,
            timeout_s=self.spec.timeout_s,
            reason=reason,
            size_bytes=slot.size_bytes if slot is not None else 0,
            labels=self.labels,
            facts=self.facts,
            max_items=self.spec.batch.max_items,
            n_ready=1 if state is ModelState.READY else 0,
            digest=self.spec.digest,
            cache_ttl_s=self.spec.cache.ttl_s if self.spec.cache else None,
            is_cache_shared=self.spec.cache is not None and self.spec.cache.shared,
            moderation=self.spec.moderation,
            rows=independent_rows(self.spec),
            load_s=wait_s,
            max_held=max_held,
            is_leaving=self.removal is not None,
        )
        self._said = (said, status) if slot is None else None
        return status
