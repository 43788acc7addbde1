"""Whose work goes first where work waits: fair turns between tenants, a head start for priorities, nobody starved.

The forwarder orders requests by it and the batch queue items. Each (tenant, priority) has a line of its own, and each
piece of work a place on one common scale: where its line has got to, and not before the scale's present (start-time
fair queueing: Goyal, Vin & Cheng, 1996). A step of priority moves a place forward by `head_start`: work of higher
priority goes first, until it has had that much more than the others in a row.

Pure arithmetic. The counterpart for models that share a device is `deployments.turns`.
"""

from typing import NamedTuple

_MANY = 256  # lines kept before those of the past are forgotten


class Place(NamedTuple):
    """Where a piece of work stands: lowest goes first."""

    rank: float
    start: float


class FairOrder:
    """Gives places. `head_start` is in the unit of costs."""

    def __init__(self, head_start: float) -> None:
        self._head_start = head_start
        self._present = 0.0
        self._ends: dict[tuple[str, int], float] = {}  # of the last place given, by line; none in the past

    def next_place(self, tenant: str, priority: int) -> Place:
        """Return where work of this line would stand now."""
        start = max(self._ends.get((tenant, priority), 0.0), self._present)
        return Place(start - priority * self._head_start, start)

    def place(self, tenant: str, priority: int, cost: float) -> Place:
        """Take and return the next place in a line, for work of this cost."""
        place = self.next_place(tenant, priority)
        self._ends[tenant, priority] = place.start + cost
        return place

    def began(self, place: Place) -> None:
        """Say that the work at this place goes now: the present moves on."""
        self._present = max(self._present, place.start)
        if len(self._ends) > _MANY:
            self._ends = {line: end for line, end in self._ends.items() if end > self._present}

    def idle(self) -> None:
        """Say that nothing waits any more."""
        self._present = 0.0
        self._ends.clear()
