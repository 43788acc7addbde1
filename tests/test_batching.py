"""BatchQueue: what goes into a batch, who is answered, and what one item's fault does to the others."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.batches import BatchRecord, choose_packed, choose_padded
from deployments.batching import BatchQueue
from deployments.errors import DeadlineExceeded, EngineFailure, InputTooLong, InvalidInput, Overloaded
from deployments.spec import BatchLimits
from deployments.speed import OVERHEAD_TOKENS
from deployments.turns import Turns
from deployments.types import Item

NEVER = float("inf")


class Engine:
    """Echoes each item; holds batches until `gate` opens; raises on items that are exceptions."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, items: list[Item]) -> Sequence[Any]:
        self.batches.append([item.data for item in items])
        await self.gate.wait()
        for item in items:
            if isinstance(item.data, BaseException):
                raise item.data
        return [item.data for item in items]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def queue_of(engine: Engine, clock: Clock | None = None, **limits: int) -> BatchQueue:
    return BatchQueue(engine.run, BatchLimits(**limits), Turns().of("m"), clock or Clock())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_lone_item_leaves_at_once() -> None:
    engine = Engine()
    [future] = queue_of(engine).submit([Item("a")], NEVER)
    assert (await future).output == "a"
    assert engine.batches == [["a"]]


async def test_items_gather_while_the_engine_is_busy() -> None:
    engine = Engine()
    engine.gate.clear()
    queue = queue_of(engine)
    futures = queue.submit([Item("a")], NEVER)
    await settle()
    for name in "bcd":
        futures += queue.submit([Item(name)], NEVER)
    engine.gate.set()
    assert [d.output for d in await asyncio.gather(*futures)] == list("abcd")
    assert engine.batches == [["a"], ["b", "c", "d"]]


async def test_two_queues_of_one_device_take_turns() -> None:
    device, order = Turns().of("m"), list[str]()

    async def run(items: list[Item]) -> Sequence[Any]:
        order.append(items[0].data)
        await asyncio.sleep(0)
        return items

    first, second = (BatchQueue(run, BatchLimits(max_items=1), device, Clock()) for _ in range(2))
    futures = first.submit([Item("a")] * 3, NEVER) + second.submit([Item("b")] * 3, NEVER)
    await asyncio.gather(*futures)
    assert order == list("ababab")


async def test_cancelled_item_does_not_hang_its_batch() -> None:
    engine = Engine()
    engine.gate.clear()
    queue = queue_of(engine)
    futures = queue.submit([Item(i) for i in range(16)], NEVER)
    await settle()
    futures[0].cancel()
    engine.gate.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [r.output for r in results[1:]] == list(range(1, 16))


async def test_item_cancelled_while_waiting_never_runs() -> None:
    engine = Engine()
    engine.gate.clear()
    queue = queue_of(engine)
    [busy] = queue.submit([Item("busy")], NEVER)
    await settle()
    [gone, kept] = queue.submit([Item("gone"), Item("kept")], NEVER)
    gone.cancel()
    engine.gate.set()
    await asyncio.gather(busy, kept)
    assert engine.batches == [["busy"], ["kept"]]


async def test_expired_item_is_dropped_before_it_runs() -> None:
    engine, clock = Engine(), Clock()
    engine.gate.clear()
    queue = queue_of(engine, clock)
    [busy] = queue.submit([Item("busy")], NEVER)
    await settle()
    [late, fine] = queue.submit([Item("late")], 5.0) + queue.submit([Item("fine")], 50.0)
    clock.now = 10.0
    engine.gate.set()
    with pytest.raises(DeadlineExceeded):
        await late
    assert (await fine).output == "fine"
    assert engine.batches == [["busy"], ["fine"]]
    await busy


@pytest.mark.parametrize("error", [ValueError("boom"), InvalidInput("bad", field="text"), asyncio.CancelledError()])
async def test_poisoned_item_fails_alone(error: BaseException) -> None:
    engine = Engine()
    futures = queue_of(engine).submit([Item(i) for i in range(7)] + [Item(error)], NEVER)
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [r.output for r in results[:7]] == list(range(7))
    assert isinstance(results[7], InvalidInput if isinstance(error, InvalidInput) else EngineFailure)


async def test_engine_that_raised_once_goes_on() -> None:
    engine = Engine()
    queue = queue_of(engine)
    with pytest.raises(EngineFailure, match="boom"):
        await queue.submit([Item(ValueError("boom"))], NEVER)[0]
    assert (await queue.submit([Item("next")], NEVER)[0]).output == "next"


async def test_wrong_number_of_outputs_is_an_error_not_a_mix_up() -> None:
    async def run(items: list[Item]) -> Sequence[Any]:
        return [1, 2, 3]

    queue = BatchQueue(run, BatchLimits(), Turns().of("m"))
    for future in queue.submit([Item("a"), Item("b")], NEVER):
        with pytest.raises(EngineFailure, match="3 outputs for 1"):
            await future


async def test_full_queue_refuses_with_a_wait() -> None:
    engine = Engine()
    engine.gate.clear()
    queue = queue_of(engine, max_queue_items=2)
    futures = queue.submit([Item("busy")], NEVER)
    await settle()
    futures += queue.submit([Item(1), Item(2)], NEVER)
    with pytest.raises(Overloaded) as caught:
        queue.submit([Item(3)], NEVER)
    assert (caught.value.retry_after_s or 0) > 0
    with pytest.raises(InputTooLong):
        queue.submit([Item(i) for i in range(3)], NEVER)
    engine.gate.set()
    await asyncio.gather(*futures)


async def test_batches_are_recorded_with_their_padding() -> None:
    records: list[BatchRecord] = []
    engine = Engine()
    queue = BatchQueue(engine.run, BatchLimits(), Turns().of("m"), Clock(), records.append)
    await asyncio.gather(*queue.submit([Item("a", 10), Item("b", 12)], NEVER))
    assert [(r.n_items, r.n_tokens, r.padded_tokens, r.is_failed) for r in records] == [(2, 22, 24, False)]


async def test_work_waiting_is_predicted_from_measured_speed() -> None:
    engine, clock = Engine(), Clock()
    queue = queue_of(engine, clock)
    await run_for(engine, queue, clock, Item("a", 100), 2.0)
    engine.gate.clear()
    [running] = queue.submit([Item("b", 100)], NEVER)
    await settle()
    assert queue.waiting_s == pytest.approx(2.0)
    clock.now += 0.5
    assert queue.waiting_s == pytest.approx(1.5)
    engine.gate.set()
    await running
    assert queue.waiting_s == 0.0


async def test_request_that_cannot_be_answered_in_time_is_refused_at_once() -> None:
    engine, clock = Engine(), Clock()
    queue = queue_of(engine, clock, max_items=1)
    await run_for(engine, queue, clock, Item("a", 100), 2.0)
    engine.gate.clear()
    waiting = queue.submit([Item(i, 100) for i in range(6)], NEVER)
    await settle()
    with pytest.raises(Overloaded, match=r"takes 10 s, the request has 4 s") as caught:
        queue.submit([Item("late", 100)], clock.now + 4.0)
    assert caught.value.retry_after_s == pytest.approx(6.0)
    # Another tenant's turn comes sooner, whatever the first one has waiting.
    waiting += queue.submit([Item("other", 100)], clock.now + 4.0, tenant="b")
    engine.gate.set()
    await asyncio.gather(*waiting)


async def test_full_queue_gives_way_to_what_goes_first() -> None:
    engine = Engine()
    engine.gate.clear()
    queue = queue_of(engine, max_queue_items=4)
    flood = queue.submit([Item("busy")], NEVER, "a")
    await settle()
    flood += queue.submit([Item(f"a{i}") for i in range(4)], NEVER, "a")
    [other] = queue.submit([Item("b")], NEVER, "b")
    [urgent] = queue.submit([Item("urgent")], NEVER, "a", priority=1)
    with pytest.raises(Overloaded):
        queue.submit([Item("a4")], NEVER, "a")
    engine.gate.set()
    results = await asyncio.gather(*flood, other, urgent, return_exceptions=True)
    assert [type(r).__name__ for r in results] == ["Done", "Done", "Done", "Overloaded", "Overloaded", "Done", "Done"]
    assert engine.batches == [["busy"], ["urgent", "a0", "b", "a1"]]


async def test_tenants_take_turns_and_priority_goes_first() -> None:
    engine = Engine()
    engine.gate.clear()
    queue = queue_of(engine, max_items=2)
    futures = queue.submit([Item("busy")], NEVER)
    await settle()
    futures += queue.submit([Item(f"a{i}") for i in range(4)], NEVER, "a")
    futures += queue.submit([Item(f"b{i}") for i in range(2)], NEVER, "b")
    futures += queue.submit([Item("urgent")], NEVER, "b", priority=1)
    engine.gate.set()
    await asyncio.gather(*futures)
    assert engine.batches == [["busy"], ["urgent", "a0"], ["b0", "a1"], ["b1", "a2"], ["a3"]]


async def test_results_of_a_finished_batch_do_not_wait_for_the_next() -> None:
    second_may_run = asyncio.Event()

    async def run(items: list[Item]) -> Sequence[Any]:
        if len(items) == 1:
            await second_may_run.wait()
        return items

    queue = BatchQueue(run, BatchLimits(max_items=2), Turns().of("m"), Clock())
    first, second, third = queue.submit([Item(i) for i in range(3)], NEVER)
    await asyncio.gather(first, second)
    assert not third.done()
    second_may_run.set()
    await third


async def test_packed_batches_are_recorded_without_padding() -> None:
    records: list[BatchRecord] = []
    engine = Engine()
    queue = BatchQueue(engine.run, BatchLimits(), Turns().of("m"), Clock(), records.append, is_packed=lambda: True)
    await asyncio.gather(*queue.submit([Item("a", 10), Item("b", 200)], NEVER))
    assert [(r.n_items, r.n_tokens, r.padded_tokens) for r in records] == [(2, 210, 210)]


async def run_for(engine: Engine, queue: BatchQueue, clock: Clock, item: Item, seconds: float) -> None:
    """Run one item and let it take so long."""
    engine.gate.clear()
    [future] = queue.submit([item], NEVER)
    await settle()
    clock.now += seconds
    engine.gate.set()
    await future


def test_packed_batches_are_filled_in_order_of_turn() -> None:
    waiting = [(8, "a"), (250, "a"), (9, "b"), (248, "a"), (7, "a")]
    assert choose_packed(waiting, 32, 300) == {0, 1}
    assert choose_packed(waiting, 32, 513) == {0, 1, 3, 4}
    assert choose_packed(waiting, 2, 513) == {0, 1}
    assert choose_packed(waiting, 32, 1) == {0}


def test_short_texts_do_not_ride_with_long_ones_where_they_are_padded() -> None:
    costs = [8, 250, 9, 248, 7]
    assert choose_padded([(c, None) for c in costs], 32, 16384) == {0, 2, 4}


def test_groups_do_not_mix() -> None:
    for choose in (choose_padded, choose_packed):
        assert choose([(1, "a"), (1, "b"), (1, "a")], 32, 16384) == {0, 2}


WAITING = st.lists(st.tuples(st.integers(1, 512), st.sampled_from("ab")), min_size=1, max_size=60)


@given(WAITING, st.integers(1, 40), st.integers(1, 4096))
def test_a_batch_keeps_its_limits_and_always_holds_the_first(
    waiting: list[tuple[int, str]], max_items: int, max_tokens: int
) -> None:
    padded, packed = choose_padded(waiting, max_items, max_tokens), choose_packed(waiting, max_items, max_tokens)
    for chosen in (padded, packed):
        assert 0 in chosen
        assert len(chosen) <= max_items
        assert {waiting[i][1] for i in chosen} == {waiting[0][1]}
    assert len(packed) == 1 or sum(waiting[i][0] for i in packed) <= max_tokens
    costs = [waiting[i][0] for i in padded]
    assert len(padded) == 1 or len(costs) * max(costs) <= max_tokens
    assert len(costs) * max(costs) - sum(costs) <= OVERHEAD_TOKENS * (len(costs) - 1)


@given(WAITING, st.integers(1, 8), st.sampled_from([choose_padded, choose_packed]))
def test_each_item_is_taken_exactly_once(waiting: list[tuple[int, str]], max_items: int, choose: Any) -> None:
    left = list(enumerate(waiting))
    seen: list[int] = []
    while left:
        chosen = choose([entry for _, entry in left], max_items, 16384)
        seen += [left[i][0] for i in chosen]
        left = [entry for i, entry in enumerate(left) if i not in chosen]
    assert sorted(seen) == list(range(len(waiting)))
