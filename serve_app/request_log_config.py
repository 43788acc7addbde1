"""What an operator writes about the request log: `request_log` in the Ingress's user_config."""

import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from deployments.sizes import Bytes
from deployments.spec import Strict


class Payloads(Strict):
    """Inputs and predictions in the log: which, how much, and what is blacked out."""

    sample: float = Field(default=1.0, ge=0, le=1, description="share of the logged requests that carry them")
    models: tuple[str, ...] = Field(default=("*",), min_length=1, description="globs over `name` and `name:version`")
    inputs: bool = True
    outputs: bool = True
    max_bytes: Bytes = Field(default=4096, description="of inputs, and of outputs, a request; the rest is cut")
    redact: tuple[str, ...] = Field(default=(), description="regular expressions; what they match is replaced")
    hide: tuple[str, ...] = Field(default=(), description="globs over names of inputs and outputs that are left out")

    @field_validator("redact")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as exc:
                raise ValueError(f"{pattern!r} is not a regular expression: {exc}") from None
        return patterns


class RequestLogConfig(Strict):
    """One JSON line a request, failures too. What the buffer does not hold is dropped and counted, never waited for."""

    url: str = Field(min_length=1, description="a folder, or any fsspec URL of one: s3://, gs://, file://")
    sample: float = Field(default=1.0, ge=0, le=1, description="share of the requests that went well; failures always")
    payloads: Payloads | None = Field(default=None, description="default: neither inputs nor predictions")
    rotate_bytes: Bytes = Field(default=64 * 2**20, gt=0, description="a file this large is closed")
    rotate_s: float = Field(
        default=300.0, gt=0, description="a file this old is closed; remote stores show closed ones"
    )
    keep_files: int = Field(default=0, ge=0, description="of each ingress replica; the oldest go first. 0 keeps all")
    flush_s: float = Field(default=1.0, gt=0, le=60, description="how often lines are written")
    max_waiting: int = Field(default=10_000, ge=1, description="lines that may wait to be written")
    max_waiting_bytes: Bytes = Field(default=64 * 2**20, description="payloads that may wait with them")

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        if urlsplit(self.url).password:
            raise ValueError("url: leave the password out; stores take credentials from their environment")
        return self
