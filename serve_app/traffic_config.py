"""What an operator writes about traffic: aliases, shadows, fallbacks, and what protects the endpoint from slow models.

Part of `EndpointConfig` (`config.py`); each block is read by the policy of its name.
"""

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from deployments.sizes import Bytes
from deployments.spec import Strict

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
ModelRef = Annotated[str, Field(pattern=rf"^{_PART}(:{_PART})?$")]  # `name` or `name:version`
Sticky = Annotated[str, Field(pattern=r"^(key|user|header:[a-z0-9-]+)$")]


class CacheConfig(Strict):
    """Answers of models whose entry says `cache`, kept in each ingress replica."""

    max_bytes: Bytes = Field(default=64 * 2**20, description="bytes of answers kept; 0 keeps none")


class Shadow(Strict):
    """A model that is asked as well, for comparison only: its answers, failures and slowness reach no client."""

    model: ModelRef
    share: float = Field(default=1.0, gt=0, le=1, description="of the requests, drawn at random")
    compare: Literal["cosine", "top1", "absolute"] | None = Field(
        default=None,
        description="how answers are compared: cosine distance of vectors, share of rows whose first label differs, "
        "greatest absolute difference of a number; default: by the model's task",
    )
    tolerance: float = Field(default=0.01, ge=0, description="a greater difference counts as a disagreement")


class Alias(Strict):
    """A name that stands for one model or several, by weight."""

    targets: dict[ModelRef, Weight] = Field(min_length=1, description="weights by model; they need not sum to anything")
    sticky: Sticky | None = Field(
        default=None,
        description="what keeps a caller on one target: key, user (the body's `user`), or header:NAME; "
        "default, and where it is missing: each request draws anew",
    )
    shadows: tuple[Shadow, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, value: object) -> object:
        """Take `prod: bert:2` as short for one target."""
        return {"targets": {value: 1.0}} if isinstance(value, str) else value

    @field_validator("targets")
    @classmethod
    def _some_weight(cls, targets: dict[str, float]) -> dict[str, float]:
        if not any(targets.values()):
            raise ValueError("at least one target needs a weight above 0")
        return targets

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The targets with a weight, the heaviest first."""
        ordered = sorted(self.targets.items(), key=lambda item: -item[1])
        return tuple(target for target, weight in ordered if weight)

    def __str__(self) -> str:
        if len(self.models) == 1:
            return self.models[0]
        return ", ".join(f"{target} ({weight:g})" for target, weight in self.targets.items())


class Fallback(Strict):
    """Who answers when a model cannot: other models in this order, then a fixed answer."""

    to: tuple[ModelRef, ...] = ()
    after_s: float | None = Field(
        default=None, gt=0, description="time a model may take before the next is asked; default: until the deadline"
    )
    answer: dict[str, JsonValue] | None = Field(
        default=None, description="outputs by name, for one row; given for every row when no model could answer"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.to and self.answer is None:
            raise ValueError("give `to`, `answer`, or both")
        return self


class Retries(Strict):
    """Whether a request that no replica could be reached for is sent again; nothing else is safe to repeat blindly."""

    max_attempts: int = Field(default=3, ge=1, le=10, description="sendings of one request in all")
    backoff_s: float = Field(default=0.1, gt=0, description="longest first pause; doubles, drawn at random up to that")
    budget: float = Field(default=0.1, ge=0, le=1, description="retries for each request, so that they never pile up")


class Breaker(Strict):
    """When a model that keeps failing is left alone: requests then fail at once, or fall back."""

    failure_rate: float = Field(default=0.5, gt=0, le=1, description="share of failures that opens the circuit")
    min_requests: int = Field(default=10, ge=1, description="requests before a rate means anything")
    window_s: float = Field(default=10.0, gt=0, description="how far back counts")
    open_s: float = Field(default=1.0, gt=0, description="time until one request may try again; doubles each time")
    max_open_s: float = Field(default=10.0, gt=0, description="longest time between two tries")


class Bulkhead(Strict):
    """How much of an ingress replica one model may take, so that a slow one leaves room for the others."""

    max_requests: int = Field(
        default=400,
        ge=1,
        description="of one model at once in an ingress replica, well below max_ongoing_requests; "
        "callers of low priority are refused from four fifths of it on, those of high priority have a tenth more",
    )
