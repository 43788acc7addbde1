"""What a batch is: how its items are chosen, what comes out of it, what is recorded of it.

Choosing is pure, over (cost, group) in order of turn: packed where costs add up, padded where each item costs as much
as the longest. Used by `deployments.batching` and whoever runs batches or counts them.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from deployments.speed import OVERHEAD_TOKENS
from deployments.types import Item

RunBatch: TypeAlias = Callable[[list[Item]], Awaitable[Sequence[Any]]]


@dataclass(frozen=True, slots=True)
class Done:
    """One item's output and the seconds it waited and ran."""

    output: Any
    queue_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What happened in one batch, for metrics; tokens are as counted by the engine's items."""

    n_items: int
    n_tokens: int
    padded_tokens: int
    run_s: float
    is_failed: bool


def choose_packed(waiting: Sequence[tuple[int, Hashable]], max_items: int, max_cost: int) -> set[int]:
    """Pick the next batch from (cost, group) in order of turn; return the indices.

    The first is always in it, whatever it costs; then those of its group, in order, as far as they fit.
    """
    chosen: set[int] = set()
    total = 0
    for index, (cost, group) in enumerate(waiting):
        if group != waiting[0][1]:
            continue
        if chosen and (total + cost > max_cost or len(chosen) == max_items):
            break
        chosen.add(index)
        total += cost
    return chosen


def choose_padded(waiting: Sequence[tuple[int, Hashable]], max_items: int, max_cost: int) -> set[int]:
    """Pick the next batch from (cost, group) in order of turn; return the indices.

    The first is always in it, whatever it costs. Around it, in order of cost, neighbours of its group join while
    the batch stays in its limits and padding costs less than running the neighbour on its own would.
    """
    if not waiting:
        return set()
    group = waiting[0][1]
    # A stable sort: among equal costs the earlier comes first.
    order = sorted((i for i, (_, g) in enumerate(waiting) if g == group), key=lambda i: waiting[i][0])
    costs = [waiting[i][0] for i in order]
    low = high = order.index(0)
    while high - low + 1 < max_items:
        size, top = high - low + 1, costs[high]
        # Padding that joining would cost: a shorter item is filled up, a longer one fills all others up.
        shorter = top - costs[low - 1] if low > 0 else None
        longer = (costs[high + 1] - top) * size if high + 1 < len(costs) else None
        grows_up = longer is not None and (shorter is None or longer <= shorter)
        padding = longer if grows_up else shorter
        new_top = costs[high + 1] if grows_up else top
        if padding is None or padding > OVERHEAD_TOKENS or (size + 1) * new_top > max_cost:
            break
        low, high = (low, high + 1) if grows_up else (low - 1, high)
    return set(order[low : high + 1])
