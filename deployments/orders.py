"""What operators order of models over the API: held by the catalog, obeyed by every replica, kept in a store."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol, TypeAlias


class Order(StrEnum):
    """What an operator asked for over the API, of a configured model."""

    LOAD = "load"  # stays in memory where there is room
    UNLOAD = "unload"  # leaves memory and is not served until it is loaded again


Orders: TypeAlias = Mapping[str, Order]  # by `name:version`


class Store(Protocol):
    """Where a catalog keeps its orders."""

    def load(self) -> Orders:
        """Return what was saved last, nothing where there is nothing."""

    def save(self, orders: Orders) -> None:
        """Keep these orders instead of those before."""
