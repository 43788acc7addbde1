"""Which models would give way to which, by the very rule that pools evict by (`deployments.room`), before any runs.

What decides at run time is use: told is what happens when all are used alike. For `plan.memory`.
"""

from collections.abc import Iterator, Mapping, Sequence

from deployments.room import Uses, first_to_go
from deployments.slot import Slot
from deployments.spec import ModelSpec
from deployments.types import ModelState

_SHOWN = 8  # names in a line, and lines of who evicts whom


def evictions(specs: Sequence[ModelSpec], sizes: Mapping[str, int | None], budget: int) -> Iterator[str]:
    """Yield who gives way first, and who would be evicted if a replica were asked for each model once, in turn."""
    order = _order(specs, sizes)
    never = [spec.key for spec in specs if spec.pinned]
    yield f"  who gives way first, used alike: {names(order)}" + (f"; never: {names(never)}" if never else "")
    found = list(_in_turn(specs, sizes, budget))
    for key, victims in found[:_SHOWN]:
        yield f"  asked for in turn: {key} evicts {names(victims)}"
    if len(found) > _SHOWN:
        yield f"  and {len(found) - _SHOWN} more of them evict others"


def _order(specs: Sequence[ModelSpec], sizes: Mapping[str, int | None]) -> list[str]:
    idle = [_slot(spec, sizes) for spec in specs if not spec.pinned]
    uses = _used_in_turn(idle)
    order = []
    while (victim := first_to_go(idle, (), uses)) is not None:
        idle.remove(victim)
        order.append(victim.spec.key)
    return order


def _in_turn(
    specs: Sequence[ModelSpec], sizes: Mapping[str, int | None], budget: int
) -> Iterator[tuple[str, list[str]]]:
    """Yield, for each model that would not find room, whom it evicts; pinned ones are there first."""
    here = [_slot(spec, sizes) for spec in specs if spec.pinned]
    seen = list(here)
    uses = _used_in_turn(seen)
    for slot in [_slot(spec, sizes) for spec in specs if not spec.pinned]:
        seen.append(slot)
        uses.note(slot)
        victims: list[str] = []
        while sum(other.size_bytes for other in here) + slot.size_bytes > budget:
            victim = first_to_go([other for other in here if other.is_evictable], (), uses)
            if victim is None:
                break  # named by validate: it does not fit at all
            here.remove(victim)
            victims.append(victim.spec.key)
        here.append(slot)
        if victims:
            yield slot.spec.key, victims


def _slot(spec: ModelSpec, sizes: Mapping[str, int | None]) -> Slot[None]:
    return Slot(spec, state=ModelState.READY, size_bytes=sizes[spec.key] or 0)


def _used_in_turn(slots: list[Slot[None]]) -> Uses:
    uses = Uses(slots)
    for slot in slots:
        uses.note(slot)
    return uses


def names(keys: Sequence[str]) -> str:
    """Return a list of names that fits a line."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
