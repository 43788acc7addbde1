"""The nouns of token-by-token generation, and the contract of the engines that do it.

    request ─prepare─▶ jobs, one a sequence ─step, step, …─▶ deltas

Read by `deployments.stepper`, which drives the steps, by `deployments.generating` and by the engines. No torch, no Ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field, field_validator

from deployments.chunks import Finish, TokenLogprob
from deployments.errors import ServeError
from deployments.spec import ModelSpec, Strict
from deployments.types import InferRequest, Signature

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_TOP_LOGPROBS = 20
MAX_SEQUENCES = 128
_MAX_ID_DIGITS = 9


class SamplingDefaults(Strict):
    """How tokens are chosen where a request does not say."""

    temperature: float = Field(default=1.0, ge=0, le=2, description="0 takes the likeliest token, always")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw from the likeliest tokens of this total probability"
    )
    top_k: int = Field(default=0, ge=0, description="draw from this many tokens; 0: from all")
    repetition_penalty: float = Field(
        default=1.0, gt=0, le=10, description="above 1: tokens seen before are less likely"
    )


class GenerateParams(Strict):
    """Parameters of a request; None means: as the model's entry says."""

    max_tokens: int | None = Field(default=None, ge=1, description="tokens to generate at most")
    n: int = Field(default=1, ge=1, le=MAX_SEQUENCES, description="sequences for each prompt")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[str, float] = Field(default_factory=dict, max_length=1024, description="by token id, -100 to 100")
    seed: int | None = Field(default=None, description="the same seed and request give the same text again")
    stop: str | list[str] = Field(
        default_factory=list, description="strings that end a sequence; they are not returned"
    )
    logprobs: int | None = Field(
        default=None, ge=0, le=MAX_TOP_LOGPROBS, description="return each token's log probability and that many more"
    )
    ignore_eos: bool = Field(default=False, description="go on past the end the model would choose")

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str]) -> str | list[str]:
        stops = [stop] if isinstance(stop, str) else stop
        if len(stops) > MAX_STOPS or not all(0 < len(one) <= MAX_STOP_LENGTH for one in stops):
            raise ValueError(f"give at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters")
        return stops

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, biases: dict[str, float]) -> dict[str, float]:
        for token, bias in biases.items():
            if not token.isdecimal() or len(token) > _MAX_ID_DIGITS or not -100 <= bias <= 100:
                raise ValueError(f"{token[:20]!r}: {bias}: give token ids with numbers from -100 to 100")
        return biases


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one sequence are chosen and when it ends: a request's wishes over the model's defaults."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(eq=False, slots=True)
class Job:
    """One sequence to generate: `index` is its place among those of its request."""

    prompt: Sequence[int]
    sampling: Sampling
    index: int = 0
    adapter: Any = None  # the LoRA adapter (an engine of its own) through which the base model speaks


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to a job: text that is certain by now, and the job's end or error if it has ended."""

    job: Job
    text: str = ""
    n_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    error: ServeError | None = None

    @property
    def is_last(self) -> bool:
        """Whether the job is over."""
        return self.finish is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did, and how the engine stands after it. Tokens and cache are counted in tokens."""

    deltas: Sequence[Delta]
    n_waiting: int = 0
    n_running: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    cache_tokens: int = 0
    n_preempted: int = 0


class Adapter(Protocol):
    """An engine that only changes how its base model speaks (LoRA)."""

    signature: Signature
    labels: tuple[str, ...]

    def size_bytes(self) -> int:
        """Bytes its weights take on the device."""

    def warm_up(self) -> None:
        """Do what makes the first request fast, if anything does."""

    def close(self) -> None:
        """Let go of the weights."""


class Generator(Protocol):
    """An engine that generates token by token.

    `prepare` is called in the pool's text thread and `step` in its device thread. Jobs join and leave between two
    steps. Like every engine it also has `size_bytes` (cache included), `warm_up` and `close`.
    """

    signature: Signature
    labels: tuple[str, ...]

    def prepare(self, request: InferRequest) -> list[Job]:
        """Turn a request into jobs, at least one. Raises InvalidInput, InputTooLong."""

    def adopt(self, spec: ModelSpec) -> None:
        """Take over a configuration that needs no load: how much may run together. Called while a step may run."""

    def check_adapter(self, adapter: Any) -> None:
        """Check that a LoRA adapter was made for this model. Raises ModelUnavailable."""

    def step(self, joining: Sequence[Job], leaving: Sequence[Job]) -> StepReport:
        """Drop `leaving`, queue `joining`, compute one token for each running job; memory is freed at once."""

    def size_bytes(self) -> int:
        """Bytes the weights and the cache take on the device."""

    def warm_up(self) -> None:
        """Run once, so that the first real request does not pay for it."""

    def close(self) -> None:
        """Let go of weights and cache."""
