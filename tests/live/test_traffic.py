"""Traffic policies on a real cluster: cache, A/B with shadows, fallbacks, breaker, bulkheads, as clients see them."""

import asyncio
import re
import time
from collections import Counter
from typing import Any

import httpx
import pytest
from echo_pool import body, config, echo
from live_cluster import Live

pytestmark = pytest.mark.timeout(300)

POLICIES: dict[str, Any] = {
    "aliases": {
        "ab": {
            "targets": {"echo:1": 50, "echo:2": 50},
            "sticky": "header:x-user",
            "shadows": [{"model": "other", "tolerance": 0.0}],
        },
        "prod": "echo:1",
    },
    "fallbacks": {"broken": {"to": ["gone", "echo:2"]}, "worse": {"answer": {"y": 0.5}}},
    "breaker": {"min_requests": 4, "open_s": 0.5},
    "bulkhead": {"max_requests": 12},
}


@pytest.fixture(scope="module")
def endpoint(cluster: Live) -> Live:
    fails = "out of order, for the test"
    parsed = config(
        echo(pinned=True, cache={"rows": ["x"]}),
        echo(version="2", pinned=True),
        echo("other", pinned=True),
        echo("slow", pinned=True, delay_s=0.5, batch={"max_items": 2}),
        *(echo(name, fails=fails) for name in ("broken", "worse", "worst")),
    )
    parsed["applications"][0]["deployments"][0]["user_config"] |= POLICIES
    cluster.deploy(parsed)
    return cluster


async def ask(endpoint: Live, model: str, *values: float, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=endpoint.http_url, timeout=60, trust_env=False) as http:
        return await http.post(f"/v2/models/{model}/infer", json=body(*values), headers=headers)


def count(endpoint: Live, name: str, **labels: str) -> float:
    page = httpx.get(f"{endpoint.http_url}/metrics", timeout=30, trust_env=False).text
    found = re.findall(rf"^model_endpoint_{name}{{(.*)}} (\S+)$", page, re.MULTILINE)
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    return sum(float(value) for line, value in found if wanted <= set(line.split(",")))


def y(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    values: list[float] = output["data"]
    return values


async def test_known_items_are_not_computed_again_and_a_hit_touches_no_pool(endpoint: Live) -> None:
    known = [float(n) for n in range(100, 130)]
    first = await ask(endpoint, "prod", *known)
    assert (first.headers["x-cache"], first.headers["x-cache-items"]) == ("miss", "0/30")
    calls = count(endpoint, "call_requests_count", model="echo:1")
    again = await ask(endpoint, "prod", *reversed(known))
    assert (y(again), again.headers["x-cache"]) == (known[::-1], "hit")
    assert count(endpoint, "call_requests_count", model="echo:1") == calls
    partial = await ask(endpoint, "prod", 7.0, *known, 8.0)
    assert (y(partial), partial.headers["x-cache-items"]) == ([7.0, *known, 8.0], "30/32")
    assert count(endpoint, "cache_items_total", model="echo", version="1", result="miss") == 32
    uncached = await ask(endpoint, "echo:2", 7.0)
    assert "x-cache" not in uncached.headers


async def test_an_alias_splits_its_callers_who_stay_and_a_shadow_is_compared(endpoint: Live) -> None:
    arms = {}
    for user in range(24):
        answers = [await ask(endpoint, "ab", float(user), **{"x-user": f"user {user}"}) for _ in range(2)]
        assert [y(answer) for answer in answers] == [[float(user)]] * 2
        (arms[user],) = {answer.headers["x-arm"] for answer in answers}
        assert f"echo:{answers[0].json()['model_version']}" == arms[user]
    assert min(Counter(arms.values()).values()) >= 4
    assert count(endpoint, "arm_requests_total", alias="ab", code="ok") == 48
    await until(lambda: count(endpoint, "shadow_requests_total", alias="ab", shadow="other", result="agree") == 48)


async def test_a_model_that_cannot_answer_is_replaced_and_the_answer_says_so(endpoint: Live) -> None:
    answer = await ask(endpoint, "broken", 1.0, 2.0)
    assert (y(answer), answer.headers["x-fallback"]) == ([1.0, 2.0], "echo:2")
    assert answer.json()["model_version"] == "2"
    fixed = await ask(endpoint, "worse", 1.0)
    assert (y(fixed), fixed.headers["x-fallback"]) == ([0.5], "static")
    assert count(endpoint, "fallbacks_total", model="worse", by="static") == 1


async def test_a_model_that_keeps_failing_is_left_alone(endpoint: Live) -> None:
    answers = [await ask(endpoint, "worst", 1.0) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {503}
    last = answers[-1]
    assert last.json()["code"] == "circuit_open"
    assert int(last.headers["retry-after"]) >= 1
    assert count(endpoint, "breaker_opened_total", model="worst") >= 1


async def test_a_slow_model_leaves_room_for_the_others(endpoint: Live) -> None:
    slow = [asyncio.create_task(ask(endpoint, "slow", float(n))) for n in range(40)]
    await asyncio.sleep(0.2)
    assert y(await ask(endpoint, "echo:2", 3.0)) == [3.0]
    assert not all(task.done() for task in slow), "it came after all of the slow model's work"
    codes = Counter(answer.status_code for answer in await asyncio.gather(*slow))
    assert codes == {200: 12, 429: 28}
    refused = next(answer for answer in [await task for task in slow] if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert count(endpoint, "shed_requests_total", model="slow", reason="full") == 28


async def until(condition: Any, timeout_s: float = 20.0) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.2)
