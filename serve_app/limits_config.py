"""What an operator writes about how much callers may ask: `limits` in the Ingress's user_config."""

import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from deployments.spec import NAME, Strict
from serve_app.references import Reference


class Rate(Strict):
    """How many of one unit: a rate with a burst, and quotas of whole calendar windows (UTC)."""

    per_s: float | None = Field(default=None, gt=0, description="sustained rate")
    burst: int | None = Field(default=None, ge=1, description="how many at once after a pause; default: one second's")
    per_minute: int | None = Field(default=None, ge=1)
    per_hour: int | None = Field(default=None, ge=1)
    per_day: int | None = Field(default=None, ge=1)
    per_month: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.burst is not None and self.per_s is None:
            raise ValueError("burst goes with per_s")
        if not self.model_fields_set - {"burst"}:
            raise ValueError("give per_s, per_minute, per_hour, per_day or per_month")
        return self

    @property
    def capacity(self) -> int:
        """Units that may be taken at once."""
        return self.burst or max(1, math.ceil(self.per_s or 0))


class LimitRule(Strict):
    """One rule. All rules that match a request apply to it."""

    name: str = Field(pattern=NAME, description="how errors and metrics call it")
    principals: tuple[str, ...] = Field(default=("*",), min_length=1, description="globs over principals")
    models: tuple[str, ...] = Field(default=("*",), min_length=1, description="globs over `name` and `name:version`")
    per: tuple[Literal["key", "principal", "model"], ...] = Field(
        default=("principal",), description="what has a counter of its own; empty: all together"
    )
    requests: Rate | None = None
    items: Rate | None = Field(default=None, description="texts, images, rows")
    tokens: Rate | None = Field(default=None, description="estimated when a request comes, settled when it is answered")
    concurrency: int | None = Field(default=None, ge=1, description="requests at work or waiting at the same time")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not any((self.requests, self.items, self.tokens, self.concurrency)):
            raise ValueError("give requests, items, tokens or concurrency")
        return self


class RedisConfig(Strict):
    """One set of counters for all ingress replicas, in Redis or Valkey."""

    url: Reference = Field(description="env:NAME or file:/path that holds redis://[user:password@]host:port[/db]")
    prefix: str = Field(default="model-endpoint", pattern=NAME, description="what its keys begin with")
    timeout_s: float = Field(default=0.25, gt=0, le=10, description="longest wait for it")
    on_failure: Literal["embedded", "open", "closed"] = Field(
        default="embedded",
        description="when it fails: count here (each ingress replica by itself), let all in, or answer 503",
    )


class LimitsConfig(Strict):
    """How much callers may ask. Without `redis` each ingress replica counts by itself."""

    rules: tuple[LimitRule, ...] = ()
    redis: RedisConfig | None = None

    @field_validator("rules")
    @classmethod
    def _unique(cls, rules: tuple[LimitRule, ...]) -> tuple[LimitRule, ...]:
        names = [rule.name for rule in rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"rule {name!r} is listed twice")
        return rules
