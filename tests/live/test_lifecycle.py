"""Load and unload over the API, as Triton's clients ask for it; aliases and versions that move under load."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_pool import body, config, echo
from live_cluster import Live

from serve_app.plan.changes import changes

pytestmark = pytest.mark.timeout(300)

MODELS = (echo(delay_s=0.002), echo(version="2", delay_s=0.002), echo("other", idle_unload_s=1.0))


def deployed(alias: str, *models: dict[str, Any]) -> Any:
    parsed = config(*(models or MODELS), pool={"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.25}})
    parsed["applications"][0]["deployments"][0]["user_config"]["aliases"] = {"echo:prod": alias}
    return parsed


@pytest.fixture(scope="module")
def endpoint(cluster: Live) -> Live:
    cluster.deploy(deployed("echo:1"))
    return cluster


def ask(endpoint: Live, path: str) -> httpx.Response:
    return httpx.post(f"{endpoint.http_url}/v2/models/{path}/infer", json=body(1.0), timeout=30)


def order(endpoint: Live, path: str) -> httpx.Response:
    return httpx.post(f"{endpoint.http_url}/v2/repository/models/{path}", timeout=60)


def index(endpoint: Live) -> dict[str, tuple[str, str]]:
    lines = httpx.post(f"{endpoint.http_url}/v2/repository/index", timeout=30).json()
    return {f"{line['name']}:{line['version']}": (line["state"], line["reason"]) for line in lines}


def test_load_and_unload_do_what_they_say_when_they_say_it(endpoint: Live) -> None:
    assert index(endpoint)["other:1"] == ("UNAVAILABLE", "not in memory: the next request loads it")
    assert order(endpoint, "other/load").json() == {"name": "other", "load": True, "state": "READY"}
    assert index(endpoint)["other:1"] == ("READY", "")
    time.sleep(3)
    assert index(endpoint)["other:1"] == ("READY", ""), "kept by order, however idle"
    assert order(endpoint, "other/unload").status_code == 200
    assert index(endpoint)["other:1"] == ("UNAVAILABLE", "unloaded")
    refused = ask(endpoint, "other")
    assert (refused.status_code, refused.json()["details"]["reason"]) == (503, "unloaded")
    assert ask(endpoint, "echo").status_code == 200
    assert order(endpoint, "nobody/load").status_code == 404


def test_orders_outlive_the_catalog_and_reach_new_replicas(endpoint: Live) -> None:
    assert order(endpoint, "other/unload").status_code == 200
    for deployment in ("Catalog", "Pool"):
        replicas = endpoint.applications()["shared"]["deployments"][deployment]["replicas"]
        for replica in replicas:
            os.kill(replica["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while ask(endpoint, "echo").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        time.sleep(2.5)  # a new replica hears orders with the next question, at most a second later
        assert ask(endpoint, "other").status_code == 503
    assert order(endpoint, "other/load").status_code == 200
    assert ask(endpoint, "other").status_code == 200


def test_an_idle_model_leaves_by_itself(endpoint: Live) -> None:
    entry = echo("idler", idle_unload_s=1.0)
    endpoint.deploy(deployed("echo:1", *MODELS, entry))
    deadline = time.monotonic() + 20
    while ask(endpoint, "idler").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    while index(endpoint)["idler:1"][0] != "UNAVAILABLE":
        assert time.monotonic() < deadline
        time.sleep(0.3)
    endpoint.deploy(deployed("echo:1"))


def test_a_plan_against_what_runs_is_right(endpoint: Live) -> None:
    runs = {"applications": [one["deployed_app_config"] for one in endpoint.applications().values()]}
    told = list(changes(runs, deployed("echo:1")))
    assert len(told) == 3, "two applications, three deployments"
    assert all(line.endswith(": left alone") for line in told), told
    assert "endpoint/Ingress: alias echo:prod: echo:1 → echo:2, once that is warm" in changes(runs, deployed("echo:2"))
    bigger = deployed("echo:1")
    bigger["applications"][1]["args"]["budget_bytes"] = "1GiB"
    assert "shared: all replicas restart, of Catalog, Pool: args changed" in changes(runs, bigger)


def test_a_fresh_ingress_replica_stands_where_the_one_before_stood(endpoint: Live) -> None:
    def ingress_pids() -> list[int]:
        replicas = endpoint.applications()["endpoint"]["deployments"]["Ingress"]["replicas"]
        return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]

    deadline = time.monotonic() + 90
    while index(endpoint)["echo:1"][0] != "READY":
        assert ask(endpoint, "echo/versions/1").status_code == 200
    broken = echo(version="3", fails="on purpose")
    endpoint.deploy(deployed("echo:3", *MODELS, broken), timeout_s=60, ready=False)
    while "echo:3" not in index(endpoint):
        assert time.monotonic() < deadline
    answer = ask(endpoint, "echo/versions/prod")
    assert answer.json().get("model_version") == "1", f"a name moves to what is warm only: {answer.text}"
    (old,) = ingress_pids()
    os.kill(old, signal.SIGKILL)
    while old in (pids := ingress_pids()) or not pids or ask(endpoint, "echo").status_code >= 500:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    answers = [ask(endpoint, "echo/versions/prod") for _ in range(20)]
    assert [(answer.status_code, answer.json().get("model_version")) for answer in answers] == [(200, "1")] * 20
    endpoint.deploy(deployed("echo:1"))


def test_a_version_that_comes_into_the_folder_is_found_by_load_and_then_the_default(
    endpoint: Live, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    entry = echo("found") | {"source": {"path": str(tmp_path), "version_folders": True}}
    del entry["version"]
    parsed = deployed("echo:1", *MODELS, entry)
    parsed["applications"][1]["deployments"][1]["user_config"]["versions"] = {"found": {"latest": 1}}
    endpoint.deploy(parsed)
    deadline = time.monotonic() + 30
    while ask(endpoint, "found").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (tmp_path / "2").mkdir()
    assert ask(endpoint, "found").json()["model_version"] == "1"
    answer = order(endpoint, "found/load")
    assert answer.status_code == 200, answer.text
    assert index(endpoint)["found:2"] == ("READY", "")
    assert ask(endpoint, "found").json()["model_version"] == "2"
    endpoint.deploy(deployed("echo:1"))


async def test_an_alias_moves_under_load_and_back_and_nobody_notices(endpoint: Live) -> None:
    versions: list[str] = []
    faults: list[str] = []
    seconds: list[float] = []
    is_over = False

    async def client() -> None:
        async with httpx.AsyncClient(base_url=endpoint.http_url, timeout=30, trust_env=False) as http:
            while not is_over:
                began = time.perf_counter()
                answer = await http.post("/v2/models/echo/versions/prod/infer", json=body(1.0))
                seconds.append(time.perf_counter() - began)
                if answer.status_code != 200:
                    faults.append(answer.text[:200])
                else:
                    versions.append(answer.json()["model_version"])
                await asyncio.sleep(0.02)

    async def until(version: str) -> None:
        for _ in range(1200):
            if versions[-5:] == [version] * 5:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"prod does not become {version}: {versions[-5:]}")

    clients = [asyncio.create_task(client()) for _ in range(8)]
    await until("1")
    await asyncio.sleep(2)
    quiet = len(seconds)
    for target in ("2", "1"):
        await asyncio.to_thread(endpoint.deploy, deployed(f"echo:{target}"), timeout_s=60, ready=False)
        await until(target)
    is_over = True
    await asyncio.gather(*clients)
    assert faults == []
    assert len(seconds) > quiet > 0
