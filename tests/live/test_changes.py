"""Models change by editing user_config and deploying again: no replica restarts, no request fails meanwhile."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from echo_pool import body, config, echo
from live_cluster import Live

CONNECTIONS = 200
CHANGES = 20

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def endpoint(cluster: Live) -> Live:
    cluster.deploy(config(echo(pinned=True)))
    return cluster


def pids(endpoint: Live) -> set[int]:
    return {
        replica["pid"]
        for application in endpoint.applications().values()
        for deployment in application["deployments"].values()
        for replica in deployment["replicas"]
    }


@dataclass(slots=True)
class Load:
    """Clients that each keep one connection and ask again as soon as they are answered."""

    url: str
    n_answers: int = 0
    faults: list[str] = field(default_factory=list)
    is_over: bool = False

    async def client(self, number: float) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False) as http:
            while not self.is_over:
                answer = await http.post("/v2/models/echo/infer", json=body(number))
                if answer.status_code != 200 or answer.json()["outputs"][0]["data"] != [number]:
                    self.faults.append(f"{answer.status_code} {answer.text[:200]}")
                self.n_answers += 1
                await asyncio.sleep(0.5)

    async def during(self, changes: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                group.create_task(self.client(float(number)))
            await asyncio.sleep(1)
            try:
                await asyncio.to_thread(changes)
            finally:
                self.is_over = True


def entries_of(change: int) -> list[dict[str, Any]]:
    """With each change the model in use gets another engine, one model comes, and the one before goes."""
    return [echo(pinned=True, n_bytes=change + 1), echo(f"model-{change}")]


def test_200_connections_do_not_notice_20_changes(endpoint: Live) -> None:
    before = pids(endpoint)
    load = Load(endpoint.http_url)

    def changes() -> None:
        for number in range(CHANGES):
            endpoint.deploy(config(*entries_of(number)), timeout_s=60, ready=False)

    asyncio.run(load.during(changes))
    assert load.faults == []
    assert load.n_answers > CONNECTIONS
    assert pids(endpoint) == before
    endpoint.deploy(config(*entries_of(CHANGES - 1)))
    names = {one["name"] for one in httpx.get(f"{endpoint.http_url}/status", timeout=10).json()["models"]}
    assert f"model-{CHANGES - 1}" in names


def test_a_bad_entry_that_gets_through_leaves_what_serves_and_says_why(endpoint: Live) -> None:
    endpoint.deploy(config(echo(pinned=True), echo("other")))
    before = pids(endpoint)
    wrong = echo(pinned=True) | {"task": "no-such-task"}
    endpoint.deploy(config(wrong, echo("other"), echo("new", tmieout_s=3)))
    answer = httpx.post(f"{endpoint.http_url}/v2/models/echo/infer", json=body(3), timeout=30)
    assert answer.json()["outputs"][0]["data"] == [3]
    ready = httpx.get(f"{endpoint.http_url}/ready", timeout=10)
    assert ready.status_code == 200
    assert "task" in ready.json()["rejected"]["shared/echo:1"]
    assert "tmieout_s" in ready.json()["rejected"]["shared/new:1"]
    assert pids(endpoint) == before
    refused = httpx.post(f"{endpoint.http_url}/v2/models/new/infer", json=body(3), timeout=10)
    assert refused.status_code == 503
    assert "tmieout_s" in refused.json()["error"]


def test_a_bad_endpoint_config_leaves_the_one_before(endpoint: Live) -> None:
    endpoint.deploy(config(echo(pinned=True)))
    wrong = config(echo(pinned=True))
    wrong["applications"][0]["deployments"][0]["user_config"]["max_timeout"] = 5
    endpoint.deploy(wrong)
    assert httpx.post(f"{endpoint.http_url}/v2/models/echo/infer", json=body(3), timeout=30).status_code == 200
    assert "max_timeout" in str(httpx.get(f"{endpoint.http_url}/ready", timeout=10).json()["rejected"])
    endpoint.deploy(config(echo(pinned=True)))
    assert httpx.get(f"{endpoint.http_url}/ready", timeout=10).json()["rejected"] == {}


def test_a_model_that_cannot_load_hurts_nobody_else(endpoint: Live) -> None:
    endpoint.deploy(config(echo(pinned=True), echo("sick", fails="no such weights")))
    answer = httpx.post(f"{endpoint.http_url}/v2/models/sick/infer", json=body(1), timeout=30)
    assert answer.status_code == 503
    assert "no such weights" in answer.json()["error"]
    assert int(answer.headers["retry-after"]) >= 1
    assert httpx.post(f"{endpoint.http_url}/v2/models/echo/infer", json=body(1), timeout=30).status_code == 200
