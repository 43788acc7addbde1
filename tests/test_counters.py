"""Counters: what is let through never exceeds the limit, in whatever order requests come; the same rules in Redis."""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_server import RedisServer, needs_redis, running

from serve_app.counters import EmbeddedStore, Kind, StoreFailure, Take
from serve_app.redis_counters import RETRY_S, RedisStore

STEPS = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 6)), min_size=1, max_size=60)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rate(cost: float, per_s: float = 2.0, burst: float = 5.0, key: str = "r") -> Take:
    return Take(key, Kind.RATE, burst, cost, per_s)


def window(cost: float, limit: float = 5.0, key: str = "w", ends_in_s: float = 30.0) -> Take:
    return Take(key, Kind.WINDOW, limit, cost, 0.0, ends_in_s)


def permits(cost: float = 1.0, limit: float = 2.0, key: str = "p") -> Take:
    return Take(key, Kind.PERMITS, limit, cost)


@given(STEPS)
def test_a_rate_lets_through_at_most_its_rate_and_its_burst_in_every_stretch_of_time(
    steps: list[tuple[float, int]],
) -> None:
    clock = Time()
    store = EmbeddedStore(clock)
    granted: list[tuple[float, int]] = []
    for pause, cost in steps:
        clock.now += pause
        verdict = store.take_now([rate(cost)])
        if verdict.refused is None:
            granted.append((clock.now, cost))
        elif cost <= 5:
            assert 0 < verdict.wait_s <= 5 / 2 + 1e-6
    for first in range(len(granted)):
        for last in range(first, len(granted)):
            total = sum(cost for _, cost in granted[first : last + 1])
            assert total <= 2.0 * (granted[last][0] - granted[first][0]) + 5.0 + 1e-6


@given(st.floats(0.1, 50), st.integers(1, 20), st.integers(1, 40))
def test_who_waits_as_told_is_let_in_and_nothing_of_the_rate_is_lost(per_s: float, burst: int, n: int) -> None:
    clock = Time()
    store = EmbeddedStore(clock)
    began = clock.now
    for _ in range(n):
        verdict = store.take_now([rate(1, per_s, burst)])
        if verdict.refused is not None:
            clock.now += verdict.wait_s + 1e-9
            assert store.take_now([rate(1, per_s, burst)]).refused is None
    assert n <= per_s * (clock.now - began) + burst + 1e-3
    assert clock.now - began <= max(n - burst, 0) / per_s + 1e-3


def test_all_or_none_is_taken() -> None:
    store = EmbeddedStore(Time())
    verdict = store.take_now([rate(3), window(6)])
    assert verdict.refused == 1
    assert math.isinf(verdict.wait_s)
    assert store.take_now([rate(5), window(5)]).remaining == [0.0, 0.0]
    refused = store.take_now([rate(0), window(1)])
    assert (refused.refused, refused.wait_s) == (1, 30.0)


def test_a_correction_may_go_into_debt_and_gives_back_no_more_than_was_taken() -> None:
    clock = Time()
    store = EmbeddedStore(clock)
    store.take_now([rate(4)])
    store.settle([rate(6)], "")
    assert store.take_now([rate(1)]).wait_s == pytest.approx(3.0)
    store.settle([rate(-100)], "")
    assert store.take_now([rate(5)]).refused is None
    assert store.take_now([rate(1)]).refused == 0


def test_permits_are_out_until_they_are_given_back() -> None:
    store = EmbeddedStore(Time())
    assert [store.take_now([permits()]).refused for _ in range(3)] == [None, None, 0]
    store.settle([permits(-1.0)], "")
    assert store.take_now([permits()]).refused is None


def test_full_counters_are_forgotten() -> None:
    clock = Time()
    store = EmbeddedStore(clock)
    for n in range(1000):
        store.take_now([rate(1, key=f"r{n}"), window(1, key=f"w{n}")])
    store.take_now([permits()])
    clock.now += 61.0
    store.take_now([rate(1)])
    assert len(store) == 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis")) as started:
        yield started


class Shared:
    """A Redis store under a prefix of its own, and what it says of Redis."""

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self.seen: list[bool] = []
        self.clock = Time()
        self.store = RedisStore(server.url, prefix, 0.5, self.seen.append, self.clock)


@pytest.fixture
async def two(server: RedisServer) -> AsyncIterator[tuple[Shared, Shared]]:
    prefix = uuid.uuid4().hex
    made = Shared(server, prefix), Shared(server, prefix)
    yield made
    for one in made:
        await one.store.aclose()


@needs_redis
@pytest.mark.timeout(60)
async def test_redis_decides_as_the_embedded_store_does(two: tuple[Shared, Shared]) -> None:
    embedded, slow = EmbeddedStore(Time()), 1e-6
    demands = [
        [rate(2, slow), window(1), permits()],
        [rate(3, slow)],
        [rate(1, slow)],
        [rate(0, slow), window(5)],
        [window(4), permits()],
        [window(1)],
        [permits()],
        [window(9)],
    ]
    for number, takes in enumerate(demands):
        expected = embedded.take_now(takes)
        verdict = await two[number % 2].store.take(takes, str(number), 60.0)
        assert verdict.refused == expected.refused, takes
        assert verdict.remaining == pytest.approx(expected.remaining, abs=1e-3)
    for store in (embedded, two[0].store):
        store.settle([rate(-2, slow), window(-1), permits(-1.0)], "0")
    takes = [rate(2, slow), window(1), permits()]
    assert (await two[1].store.take(takes, "next", 60.0)).refused is embedded.take_now(takes).refused is None
    assert two[0].seen[-1]


@needs_redis
@pytest.mark.timeout(60)
async def test_two_replicas_together_let_through_what_one_rate_allows(two: tuple[Shared, Shared]) -> None:
    per_s, burst, lasts_s = 200.0, 20.0, 2.0
    granted = 0

    async def ask(shared: Shared, until: float) -> None:
        nonlocal granted
        while time.monotonic() < until:
            verdict = await shared.store.take([rate(1, per_s, burst, key="both")], uuid.uuid4().hex, 10.0)
            granted += verdict.refused is None
            await asyncio.sleep(0 if verdict.refused is None else 0.002)

    began = time.monotonic()
    await asyncio.gather(*(ask(shared, began + lasts_s) for shared in two for _ in range(8)))
    elapsed = time.monotonic() - began
    assert granted <= per_s * elapsed + burst + 1
    assert granted >= 0.98 * per_s * lasts_s


@needs_redis
async def test_a_permit_of_a_replica_that_died_ends_by_its_lease(two: tuple[Shared, Shared]) -> None:
    takes = [permits(limit=1.0)]
    assert (await two[0].store.take(takes, "a", 0.2)).refused is None
    assert (await two[1].store.take(takes, "b", 0.2)).refused == 0
    await asyncio.sleep(0.25)
    assert (await two[1].store.take(takes, "b", 0.2)).refused is None


@needs_redis
async def test_a_client_that_leaves_while_it_waits_keeps_no_permit(two: tuple[Shared, Shared]) -> None:
    takes = [permits(limit=1.0)]
    for pauses in range(4):
        leaving = asyncio.create_task(two[0].store.take(takes, f"gone{pauses}", 60.0))
        for _ in range(pauses):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    for _ in range(100):
        if (await two[1].store.take(takes, "stays", 60.0)).refused is None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a client that left still holds its permit")


@needs_redis
@pytest.mark.timeout(60)
async def test_a_redis_that_dies_is_noticed_at_once_left_alone_a_while_and_found_again(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        shared = Shared(server, "x")
        assert (await shared.store.take([rate(1)], "a", 1.0)).refused is None
        server.stop()
        with pytest.raises(StoreFailure):
            await shared.store.take([rate(1)], "a", 1.0)
        assert shared.seen == [True, False]
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(StoreFailure):
                await shared.store.take([rate(1)], "a", 1.0)
        assert time.monotonic() - began < 0.5
        server.start()
        shared.clock.now += RETRY_S
        assert (await shared.store.take([rate(1)], "a", 1.0)).refused is None
        assert shared.seen == [True, False, True]
        await shared.store.aclose()


async def test_nobody_waits_for_a_redis_that_is_not_there() -> None:
    seen: list[bool] = []
    store = RedisStore("redis://user:hunter2@127.0.0.1:1/0", "x", 0.2, seen.append)
    answers = await asyncio.gather(*(store.take([rate(1)], "a", 1.0) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(answer, StoreFailure) for answer in answers)
    assert seen == [False]
    await store.aclose()
