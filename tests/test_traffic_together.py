"""All traffic policies at once, under failures, short deadlines and clients that leave: right answers, nothing left."""

import asyncio
import random
from collections import Counter
from functools import partial

import pytest
from traffic_cases import Counts, Pool, model, same, texts, work

from deployments.errors import DeadlineExceeded, EngineFailure, Overloaded, PoolUnavailable, ServeError
from deployments.types import MONOTONIC, InferResult
from serve_app.breaker import Breakers
from serve_app.bulkhead import Bulkheads
from serve_app.cache import ResponseCache
from serve_app.config import EndpointConfig
from serve_app.fallback import FallbackChain
from serve_app.policies import Answer, Work
from serve_app.retry import Retry
from serve_app.traffic_config import Fallback

MODELS = {f"{name}:{version}": model(name, version) for name in ("m", "other") for version in "12"}
CONFIG = EndpointConfig.model_validate(
    {
        "cache": {"max_bytes": "20KiB"},
        "bulkhead": {"max_requests": 30},
        "retries": {"backoff_s": 0.001},
        "breaker": {"min_requests": 20, "open_s": 0.01, "max_open_s": 0.02},
    }
)


class Models:
    def resolve(self, name: str, version: str | None = None) -> object:
        return MODELS[name]


class Unreliable:
    """Answers like `Pool`, later, and often not at all."""

    def __init__(self, chance: random.Random) -> None:
        self.pool = Pool()
        self.chance = chance

    async def __call__(self, one: Work) -> InferResult:
        await asyncio.sleep(self.chance.random() * 0.01)
        if MONOTONIC() > one.deadline:
            raise DeadlineExceeded("late")
        match self.chance.random():
            case x if x < 0.05:
                raise PoolUnavailable("x")
            case x if x < 0.08:
                raise EngineFailure("x")
            case x if x < 0.1:
                raise Overloaded("x")
        return await self.pool(one)


@pytest.mark.parametrize("seed", range(3))
async def test_every_answer_is_the_asked_models_own_and_nothing_is_left_behind(seed: int) -> None:
    chance, count = random.Random(seed), Counts()
    cache, rooms = ResponseCache(count.metrics), Bulkheads(count.metrics)
    layers = (FallbackChain(Models(), count.metrics), cache, rooms, Retry(count.metrics), Breakers(count.metrics))  # type: ignore[arg-type]
    answer: Answer = Unreliable(chance)
    for layer in reversed(layers):
        layer.configure(CONFIG)
        answer = partial(layer.answer, compute=answer)

    async def ask() -> str:
        await asyncio.sleep(chance.random() * 0.3)
        status = MODELS[chance.choice(["m:1", "m:2"])]
        values = [f"text {chance.randrange(40)}" for _ in range(chance.randint(1, 6))]
        deadline = MONOTONIC() + chance.choice([0.005, 5.0, 5.0])
        fallback = Fallback(to=("other:1",)) if chance.random() < 0.5 else None
        one = work(texts(*values, tenant=chance.choice("xy")), status, deadline, fallback=fallback)
        try:
            result = await answer(one)
        except ServeError as exc:
            return exc.code
        by = MODELS[one.context.headers.get("x-fallback", status.key)]
        assert same(result, by, *values), "an answer of another model, or for other texts"
        assert (result.model, result.version) == (by.name, by.version)
        return "ok"

    tasks = [asyncio.create_task(ask()) for _ in range(600)]
    for task in chance.sample(tasks, 100):
        asyncio.get_running_loop().call_later(chance.random() * 0.3, task.cancel)
    outcomes = Counter(
        "left" if isinstance(one, asyncio.CancelledError) else one
        for one in await asyncio.gather(*tasks, return_exceptions=True)
    )
    assert outcomes["ok"] > 200, outcomes
    assert set(outcomes) <= {
        "ok", "left", "deadline_exceeded", "engine_failure", "overloaded", "pool_unavailable", "circuit_open"
    }, outcomes  # fmt: skip
    assert not cache._flights
    assert not rooms._compartments
    assert cache.store.size_bytes <= 20 * 1024
