"""How much may they? Rates, quotas and concurrency of requests, items and tokens: the gateway's `Limiter`.

All rules that match a request apply; it takes from all of their counters or from none. Tokens are not known before
the model has counted them: a request takes an estimate (learned per model), and what it really cost is settled when it
ends.
Where the counters live is `counters.py` or `redis_counters.py`. Built by `ingress.py`.
"""

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from deployments.errors import LimitsUnavailable, RateLimited
from deployments.types import Clock, InferRequest
from serve_app.config import EndpointConfig
from serve_app.context import CANCELLED, Context
from serve_app.counters import EmbeddedStore, Kind, Store, StoreFailure, Take, Verdict
from serve_app.limit_rules import Applying, Counter, Windows, counters_for
from serve_app.limits_config import LimitsConfig, RedisConfig
from serve_app.limits_headers import Share, headers_of
from serve_app.policies import Permit
from serve_app.redis_counters import RedisStore
from serve_app.routing import Plan
from serve_app.telemetry import IngressMetrics

OpenStore = Callable[[RedisConfig, Callable[[bool], None]], Store]

_BYTES_PER_TOKEN = 4.0  # until a model has answered
_SMOOTHING = 0.1
_MAX_MATCHES = 10_000


class _Free:
    """The permit of a request that no rule applies to."""

    def release(self, context: Context, code: str) -> None:
        """Nothing was taken."""


@dataclass(slots=True)
class _Granted:
    """What one request took, and from where."""

    owner: "Limits"
    store: Store
    permit: str
    model: str
    size_bytes: int
    applying: Applying
    takes: Sequence[Take]

    def release(self, context: Context, code: str) -> None:
        """Give permits back, and settle tokens: what they were, also of an answer that broke off.

        A client who left pays what was estimated at least: it may have left just before the end.
        """
        n_tokens = context.usage.n_tokens
        if n_tokens and code == "ok":
            self.owner.learn(self.model, self.size_bytes, n_tokens)
        corrections = self.applying.corrections(self.takes, n_tokens, at_least_taken=code == CANCELLED)
        if corrections:
            self.store.settle(corrections, self.permit)


class Limits:
    """All rules of an endpoint. `open_store` connects to Redis."""

    def __init__(
        self,
        metrics: IngressMetrics,
        open_store: OpenStore,
        embedded: EmbeddedStore | None = None,
        wall: Clock = time.time,
    ) -> None:
        self.problems: dict[str, str] = {}
        self._metrics = metrics
        self._open_store = open_store
        self._embedded = EmbeddedStore() if embedded is None else embedded
        self._store: Store = self._embedded
        self._windows = Windows(wall)
        self._config = LimitsConfig()
        self._max_timeout_s = 0.0
        self._matches: dict[tuple[str, str, str, str], Applying] = {}
        self._bytes_per_token: dict[str, float] = {}
        self._closing: asyncio.Task[None] | None = None
        mine = uuid.uuid4().hex
        self._permits = (f"{mine}:{n}" for n in count())

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config; counters go on where they were."""
        old, self._config = self._config.redis, config.limits
        self._max_timeout_s = config.max_timeout_s
        self._matches.clear()
        if config.limits.redis != old:
            self._connect(config.limits.redis)

    async def admit(self, request: InferRequest, plan: Plan, context: Context) -> Permit:
        """Take from every limit that applies.

        Raises:
            RateLimited: one of them is used up.
            LimitsUnavailable: they cannot be counted, and are configured to be closed then.
        """
        if not self._config.rules:
            return _FREE
        model = plan.primary.key
        applying = self._applying(context, plan, model)
        if not applying.counters:
            return _FREE
        size_bytes = request.size_bytes
        n_items = request.n_items
        takes = applying.takes(n_items, self._estimate(model, n_items, size_bytes), self._windows)
        permit = next(self._permits)
        store = self._store
        try:
            if store is self._embedded:
                verdict = self._embedded.take_now(takes)
            else:
                verdict = await store.take(takes, permit, self._max_timeout_s + 1.0)
        except StoreFailure:
            if self._config.redis is not None and self._config.redis.on_failure == "closed":
                raise LimitsUnavailable("limits cannot be counted now; try again", retry_after_s=1.0) from None
            if self._config.redis is not None and self._config.redis.on_failure == "open":
                return _FREE
            store, verdict = self._embedded, self._embedded.take_now(takes)
        shares = [
            Share(counter.unit, counter.limit, left, counter.reset_s(take, left))
            for counter, take, left in zip(applying.counters, takes, verdict.remaining, strict=True)
            if counter.kind is not Kind.PERMITS
        ]
        if shares:
            context.headers.update(headers_of(shares))
        if (refused := verdict.refused) is not None:
            raise self._refusal(applying.counters[refused], takes[refused], verdict, context)
        return _Granted(self, store, permit, model, size_bytes, applying, takes)

    def learn(self, model: str, size_bytes: int, n_tokens: int) -> None:
        """Take note of how many bytes of input a token of this model was."""
        sample = size_bytes / n_tokens
        known = self._bytes_per_token.get(model, sample)
        self._bytes_per_token[model] = max(known + (sample - known) * _SMOOTHING, 0.01)

    def _estimate(self, model: str, n_items: int, size_bytes: int) -> float:
        n_tokens = math.ceil(size_bytes / self._bytes_per_token.get(model, _BYTES_PER_TOKEN))
        return float(n_tokens if n_tokens > n_items else n_items)

    def _refusal(self, counter: Counter, take: Take, verdict: Verdict, context: Context) -> RateLimited:
        self._metrics.limited(counter.rule, counter.unit)
        details = {"limit": counter.rule, "unit": counter.unit}
        if math.isinf(verdict.wait_s):
            message = f"this request takes {take.cost:g} {counter.unit}; limit {counter.rule!r} allows {counter.says}"
            if counter.limit != counter.per_s and not counter.window:
                message += f" and {counter.limit:g} at once"
            return RateLimited(f"{message}; send less a request", **details)
        wait_s = max(verdict.wait_s, 0.001)
        context.headers["retry-after-ms"] = str(math.ceil(wait_s * 1e3))
        message = f"limit {counter.rule!r} is used up: {counter.says}; try again in {wait_s:.3g} s"
        return RateLimited(message, retry_after_s=wait_s, **details)

    def _applying(self, context: Context, plan: Plan, model: str) -> Applying:
        principal = context.principal
        who = (principal.name, principal.credential, plan.asked, model)
        known = self._matches.get(who)
        if known is None:
            known = Applying(counters_for(self._config.rules, principal, plan.asked, plan.primary))
            if len(self._matches) >= _MAX_MATCHES:
                self._matches.clear()
            self._matches[who] = known
        return known

    def _connect(self, redis: RedisConfig | None) -> None:
        self.problems.clear()
        if isinstance(self._store, RedisStore):
            self._closing = asyncio.get_running_loop().create_task(self._store.aclose())
        self._store = self._embedded
        if redis is None:
            return
        try:
            self._store = self._open_store(redis, self._metrics.limit_store)
        except ValueError as exc:
            self.problems["limits.redis"] = str(exc)
            self._store = _Broken()
            self._metrics.limit_store(False)


class _Broken:
    """The store of a configuration that cannot be connected to: fails, so that `on_failure` decides."""

    async def take(self, takes: Sequence[Take], permit: str, lease_s: float) -> Verdict:
        """Fail."""
        raise StoreFailure

    def settle(self, takes: Sequence[Take], permit: str) -> None:
        """Nothing was taken."""


_FREE = _Free()
