"""What an operator writes about the endpoint: `args` and `user_config` of the application `endpoint`.

`EndpointArgs` needs new ingress processes when it changes; `EndpointConfig` (the Ingress's user_config) never does.
"""

from pydantic import Field

from deployments.sizes import Bytes
from deployments.spec import Strict
from serve_app.auth_config import AuthConfig
from serve_app.limits_config import LimitsConfig
from serve_app.request_log_config import RequestLogConfig
from serve_app.traffic_config import Alias, Breaker, Bulkhead, CacheConfig, Fallback, ModelRef, Retries


class EndpointArgs(Strict):
    """`args` of the endpoint application."""

    max_body_bytes: Bytes = Field(default=64 * 2**20, description="largest request body; beyond, 413")


class PoolRef(Strict):
    """How the endpoint depends on one pool application."""

    required: bool = Field(default=True, description="/ready waits for this pool's pinned models")


class CorsConfig(Strict):
    """Which web pages may call the endpoint from a browser."""

    allow_origins: tuple[str, ...] = Field(min_length=1, description="https://app.example, or * for any")
    allow_headers: tuple[str, ...] = Field(
        default=("authorization", "content-type", "x-api-key", "x-request-id", "x-request-timeout-seconds"),
        description="request headers besides the harmless ones",
    )
    max_age_s: int = Field(default=600, ge=0, description="how long browsers keep the answer to this question")


class EndpointConfig(Strict):
    """`user_config` of the Ingress deployment."""

    server_name: str = Field(
        default="model-endpoint",
        min_length=1,
        max_length=128,
        description="what `GET /v2` and ServerMetadata call this server",
    )
    pools: dict[str, PoolRef] = Field(default_factory=dict, description="pool applications by name")
    aliases: dict[ModelRef, Alias] = Field(
        default_factory=dict,
        description="names (`prod`, or `bert:prod` as a version of bert) and the model each stands for, or several by "
        "weight; a moved one is loaded and warm before the name moves",
    )
    max_timeout_s: float = Field(default=60.0, gt=0, description="longest time a request may ask for")
    refresh_s: float = Field(default=1.0, gt=0, le=60, description="how often the pools are asked what they offer")
    access_log: bool = Field(default=True, description="one log line a request")
    auth: AuthConfig = Field(default=AuthConfig(), description="who may ask")
    cors: CorsConfig | None = Field(default=None, description="default: no web page of another origin")
    body_timeout_s: float = Field(default=60.0, gt=0, description="time a body may take to arrive; beyond, 408")
    request_log: RequestLogConfig | None = Field(default=None, description="default: none is written")
    limits: LimitsConfig = Field(default=LimitsConfig(), description="how much they may ask")
    fallbacks: dict[str, Fallback] = Field(
        default_factory=dict, description="who answers instead, by alias, model or model version"
    )
    cache: CacheConfig = CacheConfig()
    retries: Retries | None = Field(default=None, description="default: a request is sent once")
    breaker: Breaker | None = Field(default=None, description="default: failing models are asked all the same")
    bulkhead: Bulkhead | None = Field(default=None, description="default: a model may take the whole ingress")
