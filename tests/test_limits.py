"""Limits at the gateway: which rules apply, what callers are told, what is given back."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np
import pytest
from pydantic import ValidationError

from deployments.errors import EngineFailure, LimitsUnavailable, RateLimited
from deployments.types import InferRequest, ModelState, ModelStatus, Signature, Task, Usage, text_array
from serve_app.config import EndpointConfig
from serve_app.context import Context
from serve_app.counters import EmbeddedStore, Store, StoreFailure, Take, Verdict
from serve_app.limit_rules import window_of
from serve_app.limits import Limits
from serve_app.limits_config import LimitsConfig, RedisConfig
from serve_app.limits_headers import Share, duration, headers_of
from serve_app.policies import Permit
from serve_app.principals import Principal
from serve_app.redis_counters import open_redis
from serve_app.routing import Plan
from serve_app.telemetry import IngressMetrics

A, A2, B = Principal("team-a", "k1"), Principal("team-a", "k2"), Principal("team-b", "k3")


class Down:
    """A store that is out of reach."""

    async def take(self, takes: Sequence[Take], permit: str, lease_s: float) -> Verdict:
        raise StoreFailure

    def settle(self, takes: Sequence[Take], permit: str) -> None:
        raise AssertionError("nothing was taken from here")


class Case:
    def __init__(self, *rules: dict[str, object], redis: dict[str, object] | None = None) -> None:
        self.now = 0.0
        self.metrics = IngressMetrics()
        self.limits = Limits(
            self.metrics,
            self.open,
            EmbeddedStore(lambda: self.now),
            lambda: datetime(2026, 11, 25, 23, 59, 50, tzinfo=UTC).timestamp() + self.now,
        )
        self.configure(*rules, redis=redis)

    def configure(self, *rules: dict[str, object], redis: dict[str, object] | None = None) -> None:
        limits = LimitsConfig.model_validate({"rules": rules, "redis": redis})
        self.limits.configure(EndpointConfig(limits=limits))

    def open(self, config: RedisConfig, watch: Callable[[bool], None]) -> Store:
        return Down()

    async def ask(self, principal: Principal = A, model: str = "m", n: int = 1, text: str = "word " * 4) -> Permit:
        status = ModelStatus(model, "1", Task.TENSOR, Signature((), ()), ModelState.READY, True, timeout_s=30.0)
        request = InferRequest(model, {"text": text_array([text] * n)})
        self.context = Context(principal=principal)
        return await self.limits.admit(request, Plan(model, status), self.context)

    async def refused(self, *args: object, **kwargs: object) -> RateLimited:
        with pytest.raises(RateLimited) as caught:
            await self.ask(*args, **kwargs)  # type: ignore[arg-type]
        return caught.value

    def end(self, permit: Permit, n_tokens: int = 0, code: str = "ok") -> None:
        permit.release(Context(usage=Usage(1, n_tokens)), code)

    def count(self, name: str) -> float:
        return sum(s.value for metric in self.metrics.collect() for s in metric.samples if s.name == name)


async def test_without_rules_nothing_is_counted_nor_told() -> None:
    case = Case()
    permit = await case.ask()
    case.end(permit)
    assert case.context.headers == {}


async def test_a_used_up_rate_says_which_when_to_come_back_and_what_is_left() -> None:
    case = Case({"name": "each", "requests": {"per_s": 2, "burst": 3}})
    for left in (2, 1, 0):
        await case.ask()
        assert case.context.headers["ratelimit-remaining"] == str(left)
    error = await case.refused()
    assert (error.status, error.code, error.details["limit"]) == (429, "rate_limited", "each")
    assert error.retry_after_s == pytest.approx(0.5)
    assert "2 requests a second" in error.message
    assert case.context.headers == {
        "ratelimit-limit": "3",
        "ratelimit-remaining": "0",
        "ratelimit-reset": "2",
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1.5s",
        "retry-after-ms": "500",
    }
    assert case.count("model_endpoint_limited_requests_total") == 1
    case.now += 0.5
    await case.ask()


@pytest.mark.parametrize(
    ("per", "shared", "apart"),
    [
        (["principal"], [(A2, "m")], [(B, "m")]),
        (["key"], [(A, "other")], [(A2, "m"), (B, "m")]),
        (["model"], [(B, "m")], [(A, "other")]),
        (["key", "model"], [(A, "m")], [(A2, "m"), (A, "other")]),
        ([], [(B, "other")], []),
    ],
)
async def test_who_shares_a_counter(
    per: list[str], shared: list[tuple[Principal, str]], apart: list[tuple[Principal, str]]
) -> None:
    case = Case({"name": "one", "per": per, "requests": {"per_s": 0.001}})
    await case.ask(A, "m")
    for principal, model in shared:
        await case.refused(principal, model)
    for principal, model in apart:
        await case.ask(principal, model)


async def test_rules_are_for_the_principals_and_models_they_name() -> None:
    case = Case({"name": "one", "principals": ["team-a"], "models": ["m:1", "x*"], "requests": {"per_s": 0.001}})
    await case.ask(A, "m")
    await case.refused(A, "m")
    for principal, model in ((B, "m"), (A, "other")):
        for _ in range(3):
            await case.ask(principal, model)


async def test_items_count_and_a_request_that_can_never_fit_is_told_so() -> None:
    case = Case({"name": "texts", "items": {"per_s": 10, "burst": 20}})
    await case.ask(n=15)
    assert (await case.refused(n=6)).retry_after_s == pytest.approx(0.1)
    error = await case.refused(n=21)
    assert error.retry_after_s is None
    assert "takes 21 items" in error.message
    assert "20 at once" in error.message


async def test_a_quota_ends_with_its_window() -> None:
    case = Case({"name": "daily", "requests": {"per_day": 2}})
    await case.ask()
    await case.ask()
    assert (await case.refused()).retry_after_s == pytest.approx(10.0)
    assert case.context.headers["ratelimit-reset"] == "10"
    case.now += 10.0
    await case.ask()


async def test_tokens_are_estimated_then_settled_and_the_estimate_learns() -> None:
    case = Case({"name": "tokens", "tokens": {"per_s": 1, "burst": 100}})
    permit = await case.ask(text="x" * 40)  # 10 by rule of thumb
    assert case.context.headers["x-ratelimit-remaining-tokens"] == "90"
    case.end(permit, n_tokens=20)
    permit = await case.ask(text="x" * 40)  # 2 bytes a token: 20
    assert case.context.headers["x-ratelimit-remaining-tokens"] == "60"
    case.end(permit, code=EngineFailure.code)  # nothing was computed
    permit = await case.ask(text="x" * 40)
    assert case.context.headers["x-ratelimit-remaining-tokens"] == "60"
    case.end(permit, code="cancelled")  # perhaps it was
    await case.ask(text="")
    assert case.context.headers["x-ratelimit-remaining-tokens"] == "59"


@pytest.mark.parametrize("code", ["cancelled", "deadline_exceeded"])
async def test_an_answer_that_broke_off_costs_what_was_generated(code: str) -> None:
    """Or else whoever leaves a long answer just before its end would get it for the price of the prompt."""
    case = Case({"name": "tokens", "tokens": {"per_s": 1, "burst": 100}})
    case.end(await case.ask(text="x" * 40), n_tokens=70, code=code)
    await case.ask(text="x" * 4)
    assert case.context.headers["x-ratelimit-remaining-tokens"] == "29"  # nor is anything learned from it


async def test_what_a_request_really_cost_is_owed() -> None:
    case = Case({"name": "tokens", "tokens": {"per_s": 10, "burst": 100}})
    case.end(await case.ask(text="x" * 40), n_tokens=150)
    assert (await case.refused(text="")).retry_after_s == pytest.approx(5.1)


async def test_concurrency_is_given_back_however_a_request_ends() -> None:
    case = Case({"name": "few", "concurrency": 2})
    first, second = await case.ask(), await case.ask()
    error = await case.refused()
    assert "2 requests at a time" in error.message
    for permit, code in ((first, "ok"), (second, "cancelled")):
        case.end(permit, code=code)
        await case.ask()
        await case.refused()


async def test_all_rules_apply_and_a_refusal_takes_from_none() -> None:
    case = Case(
        {"name": "a", "requests": {"per_s": 0.001, "burst": 5}}, {"name": "b", "items": {"per_s": 0.001, "burst": 3}}
    )
    await case.ask(n=3)
    for _ in range(10):
        assert (await case.refused(n=1)).details["limit"] == "b"
    assert case.context.headers["x-ratelimit-remaining-requests"] == "4"


async def test_a_new_configuration_keeps_what_was_counted() -> None:
    rule: dict[str, object] = {"name": "each", "requests": {"per_s": 0.001, "burst": 2}}
    case = Case(rule)
    await case.ask()
    await case.ask()
    case.configure(rule, {"name": "more", "requests": {"per_s": 100}})
    await case.refused()


@pytest.mark.parametrize("on_failure", ["open", "closed", "embedded"])
async def test_without_its_redis_it_does_what_is_configured(on_failure: str) -> None:
    redis: dict[str, object] = {"url": "env:X", "on_failure": on_failure}
    case = Case({"name": "one", "requests": {"per_s": 0.001}, "concurrency": 5}, redis=redis)
    if on_failure == "closed":
        with pytest.raises(LimitsUnavailable) as caught:
            await case.ask()
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)
        return
    case.end(await case.ask())
    if on_failure == "open":
        case.end(await case.ask())
    else:
        await case.refused()


async def test_an_address_that_is_none_is_told_without_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "hunter2@somewhere")
    metrics = IngressMetrics()
    limits = Limits(metrics, open_redis)
    for name in ("REDIS_URL", "NOT_SET"):
        config = LimitsConfig.model_validate({"redis": {"url": f"env:{name}"}})
        limits.configure(EndpointConfig(limits=config))
        assert name in limits.problems["limits.redis"]
        assert "hunter2" not in limits.problems["limits.redis"]
    limits.configure(EndpointConfig())
    assert limits.problems == {}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"name": "x"}, "give requests, items, tokens or concurrency"),
        ({"name": "x", "requests": {}}, "give per_s"),
        ({"name": "x", "requests": {"burst": 5}}, "burst goes with per_s"),
        ({"name": "x", "requests": {"per_s": 0}}, "greater than 0"),
        ({"name": "x", "concurrency": 0}, "greater than or equal to 1"),
        ({"name": "x", "concurrency": 1, "per": ["tenant"]}, "'key', 'principal' or 'model'"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(rule: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LimitsConfig.model_validate({"rules": [rule]})


def test_names_of_rules_are_unique() -> None:
    rule = {"name": "x", "concurrency": 1}
    with pytest.raises(ValidationError, match="listed twice"):
        LimitsConfig.model_validate({"rules": [rule, rule]})


@pytest.mark.parametrize(
    ("window", "name"),
    [("minute", "202612312359"), ("hour", "202612312300"), ("day", "202612310000"), ("month", "202612010000")],
)
def test_windows_end_with_the_calendar(window: str, name: str) -> None:
    assert window_of(window, datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC)) == (name, 30.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0201, "21ms"), (1.5, "1.5s"), (10, "10s"), (360, "6m0s"), (7500, "2h5m0s")]
)
def test_times_read_as_openais(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_limit_nearest_its_end_is_told() -> None:
    headers = headers_of([Share("requests", 100, 50, 1), Share("requests", 10, 1, 9), Share("tokens", 1000, 999, 2)])
    assert headers["ratelimit-limit"] == headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-tokens"] == "999"
    assert headers_of([]) == {}


async def test_ten_times_as_many_at_once_get_what_one_after_another_would() -> None:
    case = Case({"name": "each", "requests": {"per_s": 0.001, "burst": 20}})
    done = await asyncio.gather(*(case.ask() for _ in range(200)), return_exceptions=True)
    assert sum(not isinstance(one, Exception) for one in done) == 20


def test_numeric_inputs_count_their_rows() -> None:
    assert InferRequest("m", {"x": np.zeros((7, 2))}).n_items == 7
