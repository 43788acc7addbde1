"""Streams until their first piece: retry, breaker and fallback have a say; after it nothing is asked for twice."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from deployments.chunks import Chunk, Finish
from deployments.errors import CircuitOpen, DeadlineExceeded, ModelUnavailable, PoolUnavailable, ServeError
from deployments.types import InferRequest, ModelState, ModelStatus, PoolStatus, Signature, Task, text_array
from serve_app.breaker import Breakers
from serve_app.config import EndpointConfig, PoolRef
from serve_app.context import Context
from serve_app.fallback import FallbackChain
from serve_app.opening import Opening
from serve_app.policies import Work
from serve_app.registry import Registry
from serve_app.retry import Retry
from serve_app.routing import Plan
from serve_app.telemetry import IngressMetrics
from serve_app.traffic_config import Breaker, Fallback, Retries


def status(name: str) -> ModelStatus:
    return ModelStatus(name, "1", Task.TEXT_GENERATION, Signature((), ()), ModelState.READY, True, timeout_s=30.0)


class Case:
    """Models `m` and `n` say "a", "b"; `early` errors are raised before the first piece, `late` ones after it."""

    def __init__(self, fallback: Fallback | None = None) -> None:
        self.asked: list[str] = []
        self.early: list[ServeError] = []
        self.late: ServeError | None = None
        self.first_s = 0.0
        self.n_open = 0
        self.context = Context()
        self.fallback = fallback
        registry, traffic = Registry(), IngressMetrics().traffic
        registry.configure({"p": PoolRef()}, {})
        registry.update("p", PoolStatus((status("m"), status("n")), {}, 1))
        config = EndpointConfig(
            retries=Retries(max_attempts=3, backoff_s=0.001), breaker=Breaker(min_requests=3, open_s=60)
        )
        breakers = Breakers(traffic)
        layers = (FallbackChain(registry, traffic), Retry(traffic), breakers)
        for layer in layers:
            layer.configure(config)
        self.opening = Opening(layers, self.pieces, lambda: asyncio.get_running_loop().time(), breakers)

    async def pieces(self, work: Work) -> AsyncGenerator[Sequence[Chunk], None]:
        name = work.plan.primary.name
        self.asked.append(name)
        self.n_open += 1
        try:
            if self.early and name == "m":
                raise self.early.pop(0)
            await asyncio.sleep(self.first_s if name == "m" else 0)
            yield [Chunk(name, "1", 0, "a", 1)]
            if self.late is not None:
                raise self.late
            await asyncio.sleep(0.02)
            yield [Chunk(name, "1", 0, "b", 1, finish=Finish.STOP)]
        finally:
            self.n_open -= 1

    def work(self, seconds: float) -> Work:
        request = InferRequest("m", {"text": text_array(["hi"])})
        deadline = asyncio.get_running_loop().time() + seconds
        return Work(request, Plan("m", status("m"), fallback=self.fallback), deadline, self.context)

    async def said(self) -> str:
        text = ""
        async with aclosing(self.opening.stream(self.work(5))) as pieces:
            async for ready in pieces:
                text += "".join(chunk.text for chunk in ready)
        assert self.n_open == 0
        return text


async def test_a_stream_that_reached_nobody_is_asked_for_again() -> None:
    case = Case()
    case.early = [PoolUnavailable("no replica"), PoolUnavailable("no replica")]
    assert await case.said() == "ab"
    assert case.asked == ["m", "m", "m"]


async def test_after_the_first_piece_nothing_is_asked_for_twice() -> None:
    case = Case(Fallback(to=("n:1",)))
    case.late = PoolUnavailable("gone")
    with pytest.raises(PoolUnavailable):
        await case.said()
    assert case.asked == ["m"]


async def test_another_model_stands_in_and_the_answer_says_so() -> None:
    case = Case(Fallback(to=("n:1",)))
    case.early = [ModelUnavailable("cannot be loaded", reason="x")]
    assert await case.said() == "ab"
    assert case.asked == ["m", "n"]
    assert case.context.headers["x-fallback"] == case.context.fallback == "n:1"
    assert (case.context.model, case.context.version) == ("n", "1")


async def test_a_slow_first_token_calls_for_another_and_a_long_stream_does_not() -> None:
    case = Case(Fallback(to=("n:1",), after_s=0.01))
    assert await case.said() == "ab"  # its second piece comes later than that
    assert case.asked == ["m"]
    case.first_s = 1.0
    assert await case.said() == "ab"
    assert case.asked == ["m", "m", "n"]


async def test_a_fixed_answer_is_one_piece() -> None:
    case = Case(Fallback(answer={"text": ["sorry"]}))
    case.early = [ModelUnavailable("cannot be loaded", reason="x")]
    assert await case.said() == "sorry"


async def test_a_model_that_keeps_failing_is_left_alone() -> None:
    case = Case()
    case.early = [ModelUnavailable("cannot be loaded", reason="x") for _ in range(9)]
    for _ in range(3):
        with pytest.raises(ModelUnavailable):
            await case.said()
    with pytest.raises(CircuitOpen):
        await case.said()
    assert len(case.asked) == 3


@pytest.mark.parametrize(("error", "is_left_alone"), [(PoolUnavailable, True), (DeadlineExceeded, False)])
async def test_streams_that_break_off_count_as_failed(error: type[ServeError], is_left_alone: bool) -> None:
    """Though each had begun well; one that only ran out of its own time is no fault of the model."""
    case = Case()
    case.late = error("broke off")
    for _ in range(3):
        with pytest.raises(error):
            await case.said()
    case.late = None
    if is_left_alone:
        with pytest.raises(CircuitOpen):
            await case.said()
    else:
        assert await case.said() == "ab"


async def test_streams_that_work_outweigh_a_few_that_break_off() -> None:
    case = Case()
    for _ in range(6):
        assert await case.said() == "ab"
    case.late = PoolUnavailable("broke off")
    for _ in range(3):
        with pytest.raises(PoolUnavailable):
            await case.said()
    case.late = None
    assert await case.said() == "ab"


async def test_a_client_that_leaves_before_the_first_piece_closes_the_stream() -> None:
    case = Case()
    case.first_s = 100.0
    task = asyncio.create_task(case.said())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert case.n_open == 0


async def test_a_first_piece_that_never_comes_is_a_deadline() -> None:
    case = Case(Fallback(to=(), after_s=0.01, answer={"text": ["late"]}))
    case.first_s = 100.0
    assert await case.said() == "late"
    assert case.asked == ["m"]
    with pytest.raises(DeadlineExceeded, match="no first token from model 'm'"):
        await case.opening._begin(case.work(0.01), deadline=1e9)
    assert case.n_open == 0
