"""Counters in Redis or Valkey, shared by all ingress replicas, by Redis' own clock.

Demands that come while a call is out go together in the next one: at 1,000 requests/s a call carries dozens, so that
one costs the ingress microseconds. A script takes from all counters of a demand or from none.

    up ──a call fails or is late──▶ down: every demand fails at once, for RETRY_S ──▶ one call is tried again

All keys share one hash tag, so that a Redis cluster keeps them on one node. Called by `limits.py`.
"""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import redis.asyncio as redis_client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from deployments.types import MONOTONIC, Clock
from serve_app import references
from serve_app.counters import Kind, StoreFailure, Take, Verdict, verdict_of
from serve_app.limits_config import RedisConfig

logger = logging.getLogger(__name__)

RETRY_S = 1.0
_MAX_DEMANDS = 128  # in one call
_MAX_WAITING = 10_000
_LINGER_S = 60  # a window is kept this long after its end: clocks of replicas differ

# ARGV: a JSON list of demands {p: permit, s: lease_s, f: settle, t: [[key, kind, limit, cost, per_s, ends_in_s], …]};
# answer: a JSON list of [refused index from 1, or 0, [used, …]], where `used` is as of before the take.
_SCRIPT = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local function used_of(t)
  if t[2] == 'permits' then
    redis.call('ZREMRANGEBYSCORE', t[1], '-inf', now)
    return redis.call('ZCARD', t[1])
  end
  if t[2] == 'window' then return tonumber(redis.call('GET', t[1]) or '0') end
  local state = redis.call('HMGET', t[1], 'u', 't')
  if not state[1] then return 0 end
  return math.max(tonumber(state[1]) - math.max(now - tonumber(state[2]), 0) * t[5], 0)
end
local function put(t, used, demand)
  if t[2] == 'permits' then
    if demand.f then
      redis.call('ZREM', t[1], demand.p)
    else
      redis.call('ZADD', t[1], now + demand.s, demand.p)
      redis.call('EXPIRE', t[1], math.ceil(demand.s) + 1)
    end
  elseif t[2] == 'window' then
    redis.call('SET', t[1], string.format('%.6f', used), 'EX', math.ceil(t[6]) + LINGER)
  else
    redis.call('HSET', t[1], 'u', string.format('%.9f', used), 't', string.format('%.6f', now))
    redis.call('PEXPIRE', t[1], math.ceil(used / t[5] * 1000) + 1000)
  end
end
local answers = {}
for i, demand in ipairs(cjson.decode(ARGV[1])) do
  local used, refused = {}, 0
  for j, t in ipairs(demand.t) do
    used[j] = used_of(t)
    if not demand.f and refused == 0 and used[j] + t[4] > t[3] + 0.000000001 then refused = j end
  end
  if refused == 0 then
    for j, t in ipairs(demand.t) do put(t, math.max(used[j] + t[4], 0), demand) end
  end
  answers[i] = {refused, used}
end
return cjson.encode(answers)
""".replace("LINGER", str(_LINGER_S))


@dataclass(slots=True)
class _Demand:
    takes: Sequence[Take]
    permit: str
    lease_s: float
    future: asyncio.Future[Verdict] | None  # None: a correction, which nobody waits for

    def wire(self, prefix: str) -> dict[str, Any]:
        takes = [[f"{prefix}{t.key}", t.kind, t.limit, t.cost, t.per_s, t.ends_in_s] for t in self.takes]
        return {"p": self.permit, "s": self.lease_s, "f": self.future is None, "t": takes}


class RedisStore:
    """Counters behind `url`; `watch` is told whenever it goes up or down."""

    def __init__(
        self, url: str, prefix: str, timeout_s: float, watch: Callable[[bool], None], clock: Clock = MONOTONIC
    ) -> None:
        self._client = redis_client.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # a connection that Redis closed while it was idle is no failure
            max_connections=2,
        )
        self._script = self._client.register_script(_SCRIPT)
        self._prefix = f"{{{prefix}}}:"
        self._timeout_s = timeout_s
        self._watch = watch
        self._clock = clock
        self._down_until: float | None = None
        self._waiting: deque[_Demand] = deque()
        self._task: asyncio.Task[None] | None = None

    async def take(self, takes: Sequence[Take], permit: str, lease_s: float) -> Verdict:
        """Take from all or none.

        Raises:
            StoreFailure: Redis does not answer.
        """
        if self._is_down() or len(self._waiting) >= _MAX_WAITING:
            raise StoreFailure
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        demand = _Demand(takes, permit, lease_s, future)
        self._send(demand)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self._undo(demand)  # granted in the very moment in which its client left
            raise

    def settle(self, takes: Sequence[Take], permit: str) -> None:
        """Correct what was taken; lost while Redis is down, where permits end by their lease."""
        if not self._is_down() and len(self._waiting) < _MAX_WAITING:
            self._send(_Demand(takes, permit, 0.0, None))

    async def aclose(self) -> None:
        """Close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()

    def _is_down(self) -> bool:
        return self._down_until is not None and self._clock() < self._down_until

    def _send(self, demand: _Demand) -> None:
        self._waiting.append(demand)
        if self._task is None:
            # NOTE: an empty context: the calls serve many requests, not only the one that came first.
            work, context = self._drain(), contextvars.Context()
            self._task = asyncio.get_running_loop().create_task(work, context=context)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                demands = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_DEMANDS))]
                await self._call(demands)
        finally:
            self._task = None
            for demand in self._waiting:
                _fail(demand)
            self._waiting.clear()

    async def _call(self, demands: Sequence[_Demand]) -> None:
        try:
            async with asyncio.timeout(2 * self._timeout_s):
                body = orjson.dumps([demand.wire(self._prefix) for demand in demands])
                answers = orjson.loads(await self._script(args=[body]))
        except (RedisError, OSError, TimeoutError, ValueError) as exc:
            self._set_down(type(exc).__name__)
            for demand in (*demands, *self._waiting):
                _fail(demand)
            self._waiting.clear()
            return
        except asyncio.CancelledError:
            for demand in demands:
                _fail(demand)
            raise
        self._set_up()
        for demand, (refused, used) in zip(demands, answers, strict=True):
            if demand.future is not None and not demand.future.done():
                demand.future.set_result(verdict_of(demand.takes, list(used), refused - 1 if refused else None))
            elif demand.future is not None and not refused:
                self._undo(demand)

    def _undo(self, demand: _Demand) -> None:
        """Give back the permits of a request that left while its demand was under way."""
        permits = [take for take in demand.takes if take.kind is Kind.PERMITS]
        if permits:
            self.settle(permits, demand.permit)

    def _set_down(self, reason: str) -> None:
        if self._down_until is None:
            # NOTE: never the client's message: it may hold the address with its password.
            logger.error("Redis, which holds the limits, does not answer: %s", reason)
        self._down_until = self._clock() + RETRY_S
        self._watch(False)

    def _set_up(self) -> None:
        if self._down_until is not None:
            logger.warning("Redis answers again")
        self._down_until = None
        self._watch(True)


def _fail(demand: _Demand) -> None:
    if demand.future is not None and not demand.future.done():
        demand.future.set_exception(StoreFailure())


def open_redis(config: RedisConfig, watch: Callable[[bool], None]) -> RedisStore:
    """Return the store a configuration means; connects with its first use.

    Raises:
        ValueError: there is no such secret, or it is no address; the message does not repeat it.
    """
    url = references.read(config.url).strip()
    try:
        return RedisStore(url, config.prefix, config.timeout_s, watch)
    except (ValueError, RedisError):
        raise ValueError(f"{config.url} holds no address like redis://host:6379/0") from None
