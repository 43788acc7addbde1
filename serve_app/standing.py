"""What names stand for now, kept where a fresh ingress replica finds it: so all agree without talking to one another.

The configuration tells only what a name is *meant* to stand for (`aliases.py`). Every ingress replica writes down what
its names stand for when that changes; one that starts reads it before it hears of any pool. Made by `ingress.py`.
"""

import asyncio
import logging
from typing import Protocol, Self

from pydantic import Field

from deployments.spec import Strict
from serve_app.traffic_config import Alias

logger = logging.getLogger(__name__)
_PATIENCE_S = 2.0


class Standing(Strict):
    """What names stand for: aliases, and by a model's name the version that requests without one get."""

    aliases: dict[str, Alias] = Field(default_factory=dict)
    newest: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def loads(cls, saved: bytes) -> Self:
        """Read a record; one that cannot be read says nothing."""
        try:
            return cls.model_validate_json(saved or b"{}")
        except ValueError:
            logger.warning("the record of what names stand for cannot be read")
            return cls()

    def dumps(self) -> bytes:
        """Return the record."""
        return self.model_dump_json(exclude_defaults=True).encode()


class Kept(Protocol):
    """Where the record is kept. Both block."""

    def load(self) -> bytes:
        """Return what was saved last; empty where nothing was."""

    def save(self, saved: bytes) -> None:
        """Keep this instead."""


class Names(Protocol):
    """Who knows what names stand for (`registry.py`)."""

    def remember(self, standing: Standing) -> None:
        """Take what names stand for elsewhere."""

    def standing(self) -> Standing:
        """Return what names stand for now."""


class Record:
    """Reads the record once, and writes it when it has changed; neither ever raises."""

    def __init__(self, names: Names, kept: Kept) -> None:
        self._names = names
        self._kept = kept
        self._saved = Standing()

    async def recall(self) -> None:
        """Tell `names` what was written down last."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                saved = await asyncio.to_thread(self._kept.load)
        except Exception as exc:
            logger.warning("what names stand for could not be looked up: %s", type(exc).__name__)
            return
        self._saved = Standing.loads(saved)
        self._names.remember(self._saved)

    async def keep(self) -> None:
        """Write down what names stand for, if it is something else than was written or read last."""
        now = self._names.standing()
        if now == self._saved:
            return
        try:
            await asyncio.to_thread(self._kept.save, now.dumps())
        except Exception as exc:
            logger.warning("what names stand for could not be written down: %s", type(exc).__name__)
        else:
            self._saved = now
