"""Breaker: opens for the model's own failures, lets one try through, and is no weapon in one caller's hands."""

import asyncio

import pytest
from traffic_cases import Clock, Counts, Pool, model, settle, texts, work

from deployments.errors import (
    CircuitOpen,
    DeadlineExceeded,
    EngineFailure,
    InvalidInput,
    ModelLoading,
    ModelUnavailable,
    Overloaded,
    PoolUnavailable,
    ReplicaLost,
    ServeError,
)
from serve_app.breaker import Breakers
from serve_app.config import EndpointConfig
from serve_app.traffic_config import Breaker, Fallback

SETTINGS = Breaker(failure_rate=0.5, min_requests=4, window_s=10, open_s=1, max_open_s=4)


class Case:
    def __init__(self) -> None:
        self.clock = Clock()
        self.count = Counts()
        self.pool = Pool()
        self.breakers = Breakers(self.count.metrics, self.clock)
        self.breakers.configure(EndpointConfig(breaker=SETTINGS))

    async def ask(self, error: ServeError | None = None, n: int = 1, time_s: float = 30.0, name: str = "m") -> str:
        """Ask n times; return the last one's outcome."""
        outcome = ""
        for _ in range(n):
            self.pool.error = error
            one = work(texts("a"), model(name), deadline=self.clock() + time_s)
            try:
                await self.breakers.answer(one, self.pool)
                outcome = "ok"
            except ServeError as exc:
                outcome = exc.code
                self.retry_after_s = exc.retry_after_s
        return outcome


@pytest.mark.parametrize(
    "error", [PoolUnavailable("x"), ReplicaLost("x"), ModelUnavailable("x"), DeadlineExceeded("x"), ServeError("x")]
)
async def test_a_failing_model_is_left_alone_and_tried_again(error: ServeError) -> None:
    case = Case()
    assert await case.ask(error, n=4) == error.code
    n_asked = len(case.pool.asked)
    assert await case.ask(None, n=5) == "circuit_open"
    assert case.retry_after_s == pytest.approx(1.0)
    assert len(case.pool.asked) == n_asked, "an open circuit asks nobody"
    assert case.count("breaker_state") == 2
    case.clock.now += 1.0
    assert await case.ask(None, n=5) == "ok"
    assert case.count("breaker_state") == 0
    assert case.count("breaker_opened_total") == 1


async def test_each_failed_try_doubles_the_time_up_to_its_limit() -> None:
    case = Case()
    await case.ask(PoolUnavailable("x"), n=4)
    for wait_s in (1.0, 2.0, 4.0, 4.0):
        case.clock.now += wait_s - 0.01
        assert await case.ask() == "circuit_open"
        case.clock.now += 0.02
        assert await case.ask(PoolUnavailable("x")) == "pool_unavailable"


async def test_one_request_tries_at_a_time_and_one_whose_client_left_lets_the_next() -> None:
    case = Case()
    await case.ask(PoolUnavailable("x"), n=4)
    case.clock.now += 1.0
    case.pool.gate = asyncio.Event()
    probe = asyncio.create_task(case.ask())
    await settle()
    assert await case.ask() == "circuit_open"
    probe.cancel()
    await settle()
    case.pool.gate.set()
    assert await case.ask() == "ok"


async def test_what_was_sent_before_it_opened_does_not_decide_the_try() -> None:
    case = Case()
    case.pool.gate = asyncio.Event()
    early = asyncio.create_task(case.ask())
    await settle()
    gate, case.pool.gate = case.pool.gate, None
    await case.ask(PoolUnavailable("x"), n=4)
    case.clock.now += 1.0
    case.pool.gate = asyncio.Event()
    probe = asyncio.create_task(case.ask())
    await settle()
    gate.set()
    assert await early == "ok"
    assert await case.ask() == "circuit_open", "the try is still under way"
    case.pool.gate.set()
    assert await probe == "ok"


@pytest.mark.parametrize("error", [InvalidInput("x"), Overloaded("x"), ModelLoading("x")])
async def test_a_callers_mistake_a_full_queue_or_a_load_under_way_counts_for_nothing(error: ServeError) -> None:
    case = Case()
    assert await case.ask(error, n=50) == error.code


async def test_a_deadline_shorter_than_the_models_own_counts_for_nothing() -> None:
    case = Case()
    assert await case.ask(DeadlineExceeded("x"), n=50, time_s=0.001) == "deadline_exceeded"


async def test_the_operators_own_short_deadline_counts() -> None:
    case = Case()
    case.pool.error = DeadlineExceeded("x")
    for _ in range(4):
        one = work(texts("a"), deadline=case.clock() + 2.0, fallback=Fallback(to=("n",), after_s=2.0))
        with pytest.raises(DeadlineExceeded):
            await case.breakers.answer(one, case.pool)
    assert await case.ask() == "circuit_open"


async def test_poison_of_one_caller_does_not_take_the_model_from_the_others() -> None:
    case = Case()
    for _ in range(50):
        await case.ask(EngineFailure("poison"), n=3)
        assert await case.ask() == "ok"


async def test_a_model_that_fails_on_everything_is_left_alone() -> None:
    case = Case()
    await case.ask(EngineFailure("x"), n=4)
    assert await case.ask() == "circuit_open"


async def test_a_few_failures_among_many_answers_are_endured() -> None:
    case = Case()
    for _ in range(50):
        await case.ask(n=3)
        assert await case.ask(PoolUnavailable("x"), n=2) == "pool_unavailable"


async def test_old_failures_fade() -> None:
    case = Case()
    await case.ask(PoolUnavailable("x"), n=3)
    case.clock.now += 60
    assert await case.ask(PoolUnavailable("x"), n=3) == "pool_unavailable"
    assert await case.ask() == "ok"


async def test_models_have_circuits_of_their_own_and_new_settings_close_them() -> None:
    case = Case()
    await case.ask(PoolUnavailable("x"), n=4)
    assert await case.ask(name="n") == "ok"
    with pytest.raises(CircuitOpen):
        await case.breakers.answer(work(texts("a")), case.pool)
    case.breakers.configure(EndpointConfig())
    assert await case.ask(PoolUnavailable("x"), n=50) == "pool_unavailable"
