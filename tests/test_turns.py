"""Turns: models that share a device share its time by weight, and none starves."""

import asyncio

import pytest
import virtual_time
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.turns import Turn, Turns


async def flood(turn: Turn, held_s: float, totals: dict[str, float]) -> None:
    """Hold the device again and again, `held_s` at a time."""
    while True:
        async with turn:
            await asyncio.sleep(held_s)
            totals[turn.key] = totals.get(turn.key, 0.0) + held_s


def shares(floods: dict[str, tuple[float, float, int]], seconds: float = 100.0) -> dict[str, float]:
    """Return the share of time of each model, given (weight, seconds a batch, queues)."""

    async def main() -> dict[str, float]:
        turns = Turns(asyncio.get_running_loop().time)
        totals: dict[str, float] = {}
        tasks = []
        for key, (weight, held_s, n) in floods.items():
            turn = turns.of(key, weight)
            tasks += [asyncio.create_task(flood(turn, held_s, totals)) for _ in range(n)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return {key: total / seconds for key, total in totals.items()}

    return virtual_time.run(main)


def test_time_is_shared_by_weight_whatever_the_batches_cost() -> None:
    found = shares({"cheap": (1.0, 0.01, 1), "dear": (1.0, 0.5, 1), "gold": (2.0, 0.1, 1)})
    assert found == pytest.approx({"cheap": 0.25, "dear": 0.25, "gold": 0.5}, abs=0.02)


def test_many_waiters_of_one_model_earn_it_no_more() -> None:
    assert shares({"flood": (1.0, 0.1, 20), "quiet": (1.0, 0.1, 1)})["quiet"] == pytest.approx(0.5, abs=0.02)


@settings(max_examples=25)
@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.floats(0.5, 8.0), st.floats(0.1, 1.0)), min_size=2))
def test_every_share_is_its_weight_within_one_batch(floods: dict[str, tuple[float, float]]) -> None:
    found = shares({key: (weight, held, 1) for key, (weight, held) in floods.items()}, seconds=100.0)
    total = sum(weight for weight, _ in floods.values())
    for key, (weight, _) in floods.items():
        assert found[key] == pytest.approx(weight / total, abs=0.04)


def test_a_model_that_was_idle_goes_next_but_has_earned_no_arrears() -> None:
    async def main() -> tuple[float, float]:
        turns = Turns(asyncio.get_running_loop().time)
        totals: dict[str, float] = {}
        busy = asyncio.create_task(flood(turns.of("busy"), 0.1, totals))
        await asyncio.sleep(50.05)
        asked = asyncio.get_running_loop().time()
        late = turns.of("late")
        async with late:
            waited = asyncio.get_running_loop().time() - asked
        totals.clear()
        other = asyncio.create_task(flood(late, 0.1, totals))
        await asyncio.sleep(10)
        for task in (busy, other):
            task.cancel()
        await asyncio.gather(busy, other, return_exceptions=True)
        return waited, totals["late"]

    waited, held = virtual_time.run(main)
    assert waited <= 0.1
    assert held == pytest.approx(5.0, abs=0.3)


async def test_a_waiter_that_leaves_gives_its_place_up() -> None:
    turns = Turns()
    first, second, third = (turns.of(key) for key in "abc")
    await turns.enter(first)
    waiting = [asyncio.create_task(turns.enter(turn)) for turn in (second, third)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    turns.leave(first)
    await waiting[1]
    turns.leave(third)
    async with turns.of("d"):
        pass


async def test_a_waiter_cancelled_as_it_gets_the_device_hands_it_on() -> None:
    turns = Turns()
    first, second, third = (turns.of(key) for key in "abc")
    await turns.enter(first)
    waiting = [asyncio.create_task(turns.enter(turn)) for turn in (second, third)]
    await asyncio.sleep(0)
    turns.leave(first)
    asyncio.get_running_loop().call_soon(waiting[0].cancel)  # after second was given it, before it was told so
    await asyncio.wait_for(waiting[1], 1)
    turns.leave(third)
