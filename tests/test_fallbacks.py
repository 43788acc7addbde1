"""Fallbacks: who answers for a model that cannot, or not in time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from traffic_cases import Clock, Counts, Pool, model, same, texts, work

from deployments.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    PoolUnavailable,
    ServeError,
)
from deployments.types import Datatype, InferRequest, InferResult, ModelStatus, Signature, Task, TensorSpec, text_array
from serve_app.fallback import FallbackChain, static_result
from serve_app.policies import Work
from serve_app.traffic_config import Fallback

OTHER = model("other")


class Models:
    def resolve(self, name: str, version: str | None = None) -> ModelStatus:
        if name.startswith("gone"):
            raise ModelNotFound(f"unknown model {name!r}")
        return model(*name.split(":"))

    def all(self) -> Any:
        raise NotImplementedError

    versions = readiness = all


class Chain:
    def __init__(self, *failing: str, error: ServeError | None = None, **fallback: Any) -> None:
        self.clock = Clock()
        self.count = Counts()
        self.pool = Pool()
        self.layer = FallbackChain(Models(), self.count.metrics, self.clock)
        self.work = work(texts("a", "b"), fallback=Fallback(**fallback))
        error = error or ModelUnavailable("x")
        self.pool.error = lambda one: error if one.plan.primary.name in failing else None

    async def ask(self) -> InferResult:
        return await self.layer.answer(self.work, self.pool)

    @property
    def mark(self) -> str | None:
        return self.work.context.headers.get("x-fallback")


@pytest.mark.parametrize("error", [ModelUnavailable("x"), PoolUnavailable("x"), EngineFailure("x"), Overloaded("x")])
async def test_the_next_model_answers_and_is_named(error: ServeError) -> None:
    chain = Chain("m", error=error, to=("other",))
    result = await chain.ask()
    assert same(result, OTHER, "a", "b")
    assert (result.model, chain.mark) == ("other", "other:1")
    assert chain.count("fallbacks_total", model="m", by="other:1", code=error.code) == 1


async def test_a_model_that_answers_needs_no_fallback() -> None:
    chain = Chain(to=("other",))
    assert same(await chain.ask(), model(), "a", "b")
    assert chain.mark is None


async def test_a_wrong_request_is_wrong_for_all() -> None:
    chain = Chain("m", error=InvalidInput("x"), to=("other",))
    with pytest.raises(InvalidInput):
        await chain.ask()
    assert len(chain.pool.asked) == 1


async def test_the_chain_goes_on_past_what_fails_or_does_not_exist() -> None:
    chain = Chain("m", "n", to=("n", "gone", "other:2"))
    assert same(await chain.ask(), model("other", "2"), "a", "b")


async def test_a_model_does_not_stand_in_for_itself() -> None:
    chain = Chain("m", to=("m:1", "other"))
    await chain.ask()
    assert len(chain.pool.asked) == 2


async def test_when_nobody_can_answer_the_first_error_is_told() -> None:
    chain = Chain("m", "n", "other", to=("n", "gone", "other"))
    with pytest.raises(ModelUnavailable):
        await chain.ask()
    assert chain.mark is None


async def test_a_fixed_answer_comes_last() -> None:
    chain = Chain("m", "n", to=("n",), answer={"embedding": [0, 0, 1]})
    result = await chain.ask()
    assert result.outputs["embedding"].tolist() == [[0, 0, 1], [0, 0, 1]]
    assert result.outputs["embedding"].dtype == np.float32
    assert chain.mark == "static"


async def test_a_fixed_answer_that_does_not_fit_does_not_hide_the_error() -> None:
    chain = Chain("m", answer={"embedding": [[0], [0, 1]]})
    with pytest.raises(ModelUnavailable):
        await chain.ask()


async def test_a_fixed_answer_without_an_output_that_was_asked_for_does_not_hide_the_error() -> None:
    chain = Chain("m", answer={"embedding": [0, 0, 1]})
    chain.work.request = replace(chain.work.request, outputs=("score",))
    with pytest.raises(ModelUnavailable):
        await chain.ask()


async def test_a_slow_model_is_left_in_time_for_the_next() -> None:
    chain = Chain(to=("other",), after_s=2.0)
    deadlines: list[float] = []

    async def slow(one: Work) -> InferResult:
        deadlines.append(one.deadline - chain.clock())
        if one.plan.primary.name == "m":
            chain.clock.now += 2.0
            raise DeadlineExceeded("late")
        return await chain.pool(one)

    result = await chain.layer.answer(chain.work, slow)
    assert same(result, OTHER, "a", "b")
    assert deadlines == [2.0, 2.0]


async def test_after_the_deadline_nobody_is_asked_any_more() -> None:
    chain = Chain(to=("other",), answer={"embedding": [0, 0, 1]})

    async def late(one: Work) -> InferResult:
        chain.clock.now = one.deadline
        raise DeadlineExceeded("late")

    result = await chain.layer.answer(chain.work, late)
    assert result.outputs["embedding"].shape == (2, 3)
    assert chain.pool.asked == []


def test_a_fixed_answer_has_the_outputs_datatypes_and_rows() -> None:
    signature = Signature(
        (TensorSpec("text", Datatype.BYTES, (-1,)),),
        (TensorSpec("label", Datatype.BYTES, (-1, -1)), TensorSpec("score", Datatype.FP32, (-1, -1))),
    )
    status = model(task=Task.TEXT_CLASSIFICATION, signature=signature)
    answer = {"label": ["unknown"], "score": [0]}
    outputs = static_result(status, texts("a", "b"), answer).outputs
    assert outputs["label"].tolist() == [[b"unknown"], [b"unknown"]]
    assert (outputs["score"].dtype, outputs["score"].shape) == (np.float32, (2, 1))
    assert list(static_result(status, texts("a", outputs=("score",)), answer).outputs) == ["score"]
    whole = static_result(model(rows=()), InferRequest("m", {"x": text_array(["a"])}), {"y": [1.5, 2]})
    assert whole.outputs["y"].tolist() == [1.5, 2]
    with pytest.raises(TypeError):
        static_result(status, texts("a"), {"label": [{"a": 1}]})


def test_a_fallback_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="give `to`, `answer`, or both"):
        Fallback()
