"""What operators order of models over the API: held by the catalog, obeyed by every replica, kept in a store."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self, TypeAlias

from deployments.spec import ModelSpec


class Verb(StrEnum):
    """What is to be done with a configured model."""

    LOAD = "load"  # stays in memory where there is room
    UNLOAD = "unload"  # leaves memory and is not served until it is loaded again


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator asked for over the API, of a configured model; in force until the next order for it."""

    verb: Verb
    max_items: int | None = None  # with LOAD: items a batch may hold, in place of what the entry says

    def __str__(self) -> str:
        return self.verb if self.max_items is None else f"{self.verb} {self.max_items}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the order that `str` has written."""
        verb, _, max_items = text.partition(" ")
        return cls(Verb(verb), int(max_items) if max_items else None)


LOAD, UNLOAD = Order(Verb.LOAD), Order(Verb.UNLOAD)
Orders: TypeAlias = Mapping[str, Order]  # by `name:version`


class Store(Protocol):
    """Where a catalog keeps its orders."""

    def load(self) -> Orders:
        """Return what was saved last, nothing where there is nothing."""

    def save(self, orders: Orders) -> None:
        """Keep these orders instead of those before."""


def as_ordered(spec: ModelSpec, max_items: int | None) -> ModelSpec:
    """Return an entry with batches of the size that was ordered."""
    if max_items is None:
        return spec
    return spec.model_copy(update={"batch": spec.batch.model_copy(update={"max_items": max_items})})
