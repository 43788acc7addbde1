"""Statuses that are asked for again and again: a thousand models that have not changed are not sent twice.

Who asks says which revision of the models it knows; equal revisions mean equal models. Called by both sides of each
hop: `deployments.pool` and `deployments.catalog`, `deployments.catalog` and `serve_app.handles`.
"""

import uuid
from dataclasses import replace

from deployments.types import ModelStatus, PoolStatus


class Revisions:
    """Numbers what one speaker says of its models; nobody else's numbers are the same."""

    def __init__(self) -> None:
        self._speaker = uuid.uuid4().hex[:12]
        self._number = 0
        self._models: tuple[ModelStatus, ...] = ()

    def mark(self, status: PoolStatus) -> PoolStatus:
        """Return the status with the revision of its models: a new one if they are not what was marked last."""
        if not self._number or status.models != self._models:
            self._number += 1
            self._models = status.models
        return replace(status, models=self._models, revision=f"{self._speaker}.{self._number}")


def brief(status: PoolStatus, known: str) -> PoolStatus:
    """Return a marked status as it is told to somebody who knows the models of revision `known`."""
    return replace(status, models=()) if status.revision == known else status


def complete(status: PoolStatus, last: PoolStatus | None) -> PoolStatus:
    """Return in full what was told by `brief` to somebody who was told `last` before."""
    if last is None or status.revision != last.revision:
        return status
    return replace(status, models=last.models)
