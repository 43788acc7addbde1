"""Retries: what is sent again, how often, and until when."""

from typing import Any

import pytest
from traffic_cases import Clock, Counts, Pool, model, same, texts, work

from deployments.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidInput,
    ModelUnavailable,
    Overloaded,
    PoolUnavailable,
    ServeError,
)
from serve_app.config import EndpointConfig
from serve_app.policies import Work
from serve_app.retry import Retry
from serve_app.traffic_config import Retries


def flaky(n_failures: int, error: ServeError) -> tuple[Pool, list[int]]:
    pool, left = Pool(), [n_failures]

    def fail(_: Work) -> ServeError | None:
        left[0] -= 1
        return error if left[0] >= 0 else None

    pool.error = fail
    return pool, left


def retry(count: Counts, clock: Clock, **settings: Any) -> Retry:
    policy = Retry(count.metrics, clock, draw=lambda: 0.0)
    policy.configure(EndpointConfig(retries=Retries(**settings)))
    return policy


async def test_a_request_that_reached_no_replica_is_sent_again() -> None:
    count, clock = Counts(), Clock()
    pool, _ = flaky(2, PoolUnavailable("x"))
    result = await retry(count, clock).answer(work(texts("a")), pool)
    assert same(result, model(), "a")
    assert count("retries_total", model="m") == 2


async def test_it_is_sent_no_more_often_than_allowed() -> None:
    pool, _ = flaky(9, PoolUnavailable("x"))
    with pytest.raises(PoolUnavailable):
        await retry(Counts(), Clock(), max_attempts=3).answer(work(texts("a")), pool)
    assert len(pool.asked) == 3


@pytest.mark.parametrize(
    "error", [InvalidInput("x"), EngineFailure("x"), Overloaded("x"), DeadlineExceeded("x"), ModelUnavailable("x")]
)
async def test_nothing_else_is_sent_again(error: ServeError) -> None:
    pool, _ = flaky(1, error)
    with pytest.raises(type(error)):
        await retry(Counts(), Clock()).answer(work(texts("a")), pool)
    assert len(pool.asked) == 1


async def test_retries_have_a_budget() -> None:
    """A pool that is gone gets a tenth more requests than usual, not three times as many."""
    policy, pool = retry(Counts(), Clock(), budget=0.1), Pool()
    pool.error = PoolUnavailable("x")
    for _ in range(200):
        with pytest.raises(PoolUnavailable):
            await policy.answer(work(texts("a")), pool)
    assert 220 <= len(pool.asked) <= 231


async def test_no_retry_after_the_deadline() -> None:
    clock = Clock()
    policy = Retry(Counts().metrics, clock, draw=lambda: 1.0)
    policy.configure(EndpointConfig(retries=Retries(backoff_s=5)))
    pool, _ = flaky(1, PoolUnavailable("x"))
    with pytest.raises(PoolUnavailable):
        await policy.answer(work(texts("a"), deadline=clock() + 4.0), pool)
