"""The first piece of a streamed answer, had through the layers that may ask again: fallback, retry, breaker.

Until it is here nothing has been said, and a stream is asked for as any answer is; from then on it is as it comes, and
nothing is asked for twice; only the breaker is told if it breaks off. Used by `gateway.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from deployments.chunks import Chunk, Finish
from deployments.errors import DeadlineExceeded, EngineFailure, ServeError
from deployments.types import MONOTONIC, Clock, InferResult, ModelStatus
from serve_app.policies import Answer, Breaks, Layer, Work
from serve_app.streams import Stream


@dataclass(frozen=True)
class Begun(InferResult):
    """A stream that has begun, on its way back through the layers as if it were an answer."""

    by: ModelStatus | None = None
    first: Sequence[Chunk] = ()
    rest: AsyncGenerator[Sequence[Chunk], None] | None = None


class Opening:
    """Opens streams with `pieces`, through `layers`."""

    def __init__(
        self,
        layers: Sequence[Layer],
        pieces: Callable[[Work], Stream],
        clock: Clock = MONOTONIC,
        breaks: Breaks | None = None,
    ) -> None:
        self._layers = layers
        self._pieces = pieces
        self._clock = clock
        self._breaks = breaks

    async def stream(self, work: Work) -> Stream:
        """Yield the answer of the first that begins one. Raises ServeError."""
        answer: Answer = partial(self._begin, deadline=work.deadline)
        for layer in reversed(self._layers):
            answer = partial(layer.answer, compute=answer)
        result = await answer(work)
        work.context.answered_by(result)
        if not isinstance(result, Begun):  # the fixed answer of a fallback
            yield _spoken(result)
            return
        assert result.rest is not None  # noqa: S101 - narrows for mypy
        async with aclosing(result.rest) as rest:
            yield result.first
            try:
                async for ready in rest:
                    yield ready
            except ServeError as exc:
                if self._breaks is not None and result.by is not None:
                    self._breaks.broke(result.by, exc)
                raise

    async def _begin(self, work: Work, deadline: float) -> InferResult:
        """Wait for a first piece until the deadline of `work`; the stream itself may last until `deadline`."""
        pieces = self._pieces(replace(work, deadline=deadline))
        try:
            async with asyncio.timeout(work.deadline - self._clock()):
                first = await anext(pieces, None)
        except TimeoutError:
            await pieces.aclose()
            raise DeadlineExceeded(f"no first token from model {work.plan.primary.name!r} in time") from None
        except BaseException:
            await pieces.aclose()
            raise
        if first is None:
            raise EngineFailure("the model ended before it began", reason="no piece")
        model = work.plan.primary
        return Begun(model.name, model.version, {}, by=model, first=first, rest=pieces)


def _spoken(result: InferResult) -> list[Chunk]:
    texts = result.outputs["text"].reshape(-1).tolist() if "text" in result.outputs else []
    if not texts:
        raise EngineFailure("the fixed answer that stands in for the model has no text", reason="no text")
    chunks = [
        Chunk(model=result.model, version=result.version, index=index, text=text.decode(), finish=Finish.STOP)
        for index, text in enumerate(texts)
    ]
    return [*chunks[:-1], replace(chunks[-1], usage=result.usage)]
