"""The pieces of a streamed answer, and how they become a whole one again for callers that do not stream.

Made by `deployments.generating`; `collect` is called there for a pool's callers and by the gateway for the endpoint's.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import orjson

from deployments.types import Array, InferResult, Task, Timings, Usage, text_array

GENERATIVE_TASKS = frozenset((Task.TEXT_GENERATION, Task.TEXT2TEXT_GENERATION))  # answered token by token


class Finish(StrEnum):
    """Why a generated sequence ended: by itself or at a stop string, or because it may not be longer."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, how likely it was, and the likeliest ones in its place; bytes, for not all are UTF-8."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What became ready together of one sequence of a streamed answer.

    `finish` stands in the sequence's last chunk. The request's last chunk has `usage` and `timings`.
    """

    model: str
    version: str
    index: int = 0
    text: str = ""
    n_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    usage: Usage | None = None
    timings: Timings | None = None


@dataclass(slots=True)
class _Sequence:
    """One generated sequence as far as it has come."""

    texts: list[str] = field(default_factory=list)
    n_tokens: int = 0
    finish: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Said:
    """What a stream has said so far, as one result: `text`, `finish_reason` and `n_tokens`, a row a sequence.

    Where log probabilities were asked for there is also `logprobs`, JSON: a list of tokens for each sequence.
    """

    def __init__(self) -> None:
        self._sequences: dict[int, _Sequence] = {}
        self._last: Chunk | None = None

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Take what became ready."""
        for chunk in chunks:
            self._last = chunk
            one = self._sequences.setdefault(chunk.index, _Sequence())
            one.texts.append(chunk.text)
            one.n_tokens += chunk.n_tokens
            one.finish = chunk.finish or one.finish
            one.logprobs.extend(chunk.logprobs)

    def result(self) -> InferResult | None:
        """Return it; None while nothing has been said. Until the last chunk, usage is of what was generated."""
        last = self._last
        if last is None:
            return None
        rows = [self._sequences[index] for index in sorted(self._sequences)]
        n_tokens = [row.n_tokens for row in rows]
        outputs: dict[str, Array] = {
            "text": text_array(["".join(row.texts) for row in rows]),
            "finish_reason": text_array([row.finish for row in rows]),
            "n_tokens": np.array(n_tokens, np.int64),
        }
        if any(row.logprobs for row in rows):
            told = [orjson.dumps(list(map(logprob_json, row.logprobs))).decode() for row in rows]
            outputs["logprobs"] = text_array(told)
        usage = last.usage or Usage(n_tokens=sum(n_tokens), n_output_tokens=sum(n_tokens))
        return InferResult(last.model, last.version, outputs, usage, last.timings or Timings())


async def collect(stream: AsyncIterator[Sequence[Chunk]], said: Said | None = None) -> InferResult:
    """Return a whole stream as one result; `said` has what came of one that breaks off."""
    said = said or Said()
    async for chunks in stream:
        said.add(chunks)
    result = said.result()
    assert result is not None  # noqa: S101 - a stream without an error has chunks
    return result


def as_result(chunk: Chunk) -> InferResult:
    """Return one chunk as a result of its own: what doors send that stream tensors."""
    outputs: dict[str, Array] = {
        "text": text_array([chunk.text]),
        "finish_reason": text_array([chunk.finish or ""]),
        "n_tokens": np.array([chunk.n_tokens], np.int64),
    }
    if chunk.logprobs:
        outputs["logprobs"] = text_array([orjson.dumps(list(map(logprob_json, chunk.logprobs))).decode()])
    return InferResult(chunk.model, chunk.version, outputs, chunk.usage or Usage(), chunk.timings or Timings())


def logprob_json(token: TokenLogprob) -> dict[str, object]:
    """Return a token's log probabilities as OpenAI writes them."""
    top = [_json(other, logprob) for other, logprob in token.top]
    return {**_json(token.token, token.logprob), "top_logprobs": top}


def _json(token: bytes, logprob: float) -> dict[str, object]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}
