"""Streams: which copy is asked, what is asked for again, what ends with whom; and the gateway's side of a stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import pytest

from deployments.chunks import Chunk, Finish
from deployments.errors import DeadlineExceeded, InvalidInput, Overloaded, ReplicaLost
from deployments.types import (
    InferRequest,
    ModelState,
    ModelStatus,
    PoolStatus,
    Signature,
    Task,
    Timings,
    Usage,
    text_array,
)
from serve_app import streams
from serve_app.config import PoolRef
from serve_app.context import Context
from serve_app.forwarder import Forwarder, Target
from serve_app.gateway import Gateway
from serve_app.principals import ANONYMOUS
from serve_app.registry import Registry
from serve_app.streams import Streams
from serve_app.telemetry import IngressMetrics

TARGET = Target("p", "m:1", n_replicas=3)
ASK = InferRequest("m", {"text": text_array(["hi"])})
LAST = Chunk("m", "1", 0, "b", 1, finish=Finish.STOP, usage=Usage(1, 5, 2), timings=Timings(run_s=0.5))


class Pool:
    """Says "a", then "b"; `lost` calls die first, `dies_late` ones in between; `waits` for ever before "b"."""

    def __init__(self) -> None:
        self.copies: list[int] = []
        self.timeouts: list[float | None] = []
        self.lost = 0
        self.dies_late = False
        self.waits = False
        self.n_open = 0

    async def open(self, target: Target, request: InferRequest, copy: int) -> AsyncGenerator[Sequence[Chunk], None]:
        self.copies.append(copy)
        self.timeouts.append(request.timeout_s)
        self.n_open += 1
        try:
            if len(self.copies) <= self.lost:
                raise ReplicaLost("gone")
            yield [Chunk("m", "1", 0, "a", 1)]
            if self.waits:
                await asyncio.sleep(1000)
            if self.dies_late:
                raise ReplicaLost("gone")
            yield [LAST]
        finally:
            self.n_open -= 1


@pytest.fixture
def pool() -> Pool:
    return Pool()


async def said(stream: AsyncIterator[Sequence[Chunk]]) -> str:
    return "".join([chunk.text async for ready in stream for chunk in ready])


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def streaming(pool: Pool) -> Streams:
    return Streams(pool.open, asyncio.get_running_loop().time)


async def test_a_replica_lost_before_the_first_piece_is_asked_for_again(pool: Pool) -> None:
    pool.lost = 1
    assert await said(streaming(pool).stream(TARGET, ASK, soon())) == "ab"
    assert len(pool.copies) == 2
    pool.copies, pool.lost = [], 2
    with pytest.raises(ReplicaLost):
        await said(streaming(pool).stream(TARGET, ASK, soon()))


async def test_a_replica_lost_later_is_an_error_and_nothing_is_said_twice(pool: Pool) -> None:
    pool.dies_late = True
    stream = streaming(pool).stream(TARGET, ASK, soon())
    assert (await anext(stream))[0].text == "a"
    with pytest.raises(ReplicaLost):
        await anext(stream)
    assert len(pool.copies) == 1


async def test_a_deadline_ends_a_stream_and_its_call(pool: Pool) -> None:
    pool.waits = True
    stream = streaming(pool).stream(TARGET, ASK, soon(0.05))
    await anext(stream)
    with pytest.raises(DeadlineExceeded):
        await anext(stream)
    assert pool.n_open == 0
    assert pool.timeouts[0] is not None
    assert pool.timeouts[0] <= 0.05


async def test_leaving_early_closes_the_call(pool: Pool) -> None:
    many = streaming(pool)
    async with aclosing(many.stream(TARGET, ASK, soon())) as stream:
        await anext(stream)
        assert pool.n_open == 1
    assert pool.n_open == 0
    assert many._open == {}


async def test_a_pinned_models_streams_spread_and_another_one_earns_copies(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "COPY_STREAMS", 2)
    monkeypatch.setattr(streams, "MAX_STREAMS", 6)
    many = streaming(pool)
    for is_everywhere, copies in ((True, [0, 1, 2, 0]), (False, [0, 0, 1, 1])):
        pool.copies = []
        target = Target("p", "m:1", n_replicas=3, is_everywhere=is_everywhere)
        opened = [many.stream(target, ASK, soon()) for _ in range(4)]
        for stream in opened:
            await anext(stream)
        assert pool.copies == copies
        for stream in opened:
            await stream.aclose()
    opened = [many.stream(TARGET, ASK, soon()) for _ in range(6)]
    for stream in opened:
        await anext(stream)
    with pytest.raises(Overloaded):
        await anext(many.stream(TARGET, ASK, soon()))
    for stream in opened:
        await stream.aclose()


class Pools:
    """What a gateway asks of its pools beside inference: nothing, here."""


def gateway(pool: Pool, metrics: IngressMetrics, task: Task = Task.TEXT_GENERATION) -> Gateway:
    async def send(call: object) -> AsyncIterator[object]:
        raise AssertionError("a generating model goes through no lane")
        yield

    registry = Registry()
    registry.configure({"p": PoolRef()}, {})
    status = ModelStatus("m", "1", task, Signature((), ()), ModelState.READY, True, timeout_s=30.0)
    registry.update("p", PoolStatus((status,), {}, 1))
    forwarder = Forwarder(send)  # type: ignore[arg-type]
    return Gateway(registry, forwarder, metrics, Pools(), streams=Streams(pool.open))  # type: ignore[arg-type]


def counted(metrics: IngressMetrics) -> dict[str, float]:
    samples = [sample for metric in metrics.collect() for sample in metric.samples]
    return {s.labels["code"]: s.value for s in samples if s.name == "model_endpoint_requests_total"}


async def test_the_gateway_counts_a_stream_and_what_it_cost(pool: Pool) -> None:
    metrics, context = IngressMetrics(), Context(principal=ANONYMOUS)
    one = gateway(pool, metrics)
    assert await said(one.stream(ASK, context)) == "ab"
    assert (context.usage.n_tokens, context.phases["run"]) == (5, 0.5)
    result = await one.infer(ASK, Context(principal=ANONYMOUS))
    assert result.outputs["text"].tolist() == [b"ab"]
    pool.dies_late = True
    with pytest.raises(ReplicaLost):
        await said(one.stream(ASK, Context(principal=ANONYMOUS)))
    async with aclosing(one.stream(ASK, Context(principal=ANONYMOUS))) as left:
        await anext(left)
    assert counted(metrics) == {"ok": 2, "replica_lost": 1, "cancelled": 1}
    assert pool.n_open == 0


async def test_a_model_that_does_not_generate_does_not_stream(pool: Pool) -> None:
    with pytest.raises(InvalidInput, match="does not stream"):
        await anext(gateway(pool, IngressMetrics(), Task.TENSOR).stream(ASK, Context(principal=ANONYMOUS)))
