"""A pool under a step of load: 1 replica, several, 1 again, and every request answered."""

import asyncio
import time

import httpx
import pytest
from echo_pool import body, config, echo
from live_cluster import Live

pytestmark = pytest.mark.timeout(300)

_SCALING = {
    "min_replicas": 1,
    "max_replicas": 3,
    "upscale_delay_s": 1,
    "downscale_delay_s": 2,
    "look_back_period_s": 2,
    "policy": {"policy_function": "deployments.autoscaling:waiting_work"},
}
_CLIENTS = 30  # each waits for 0.2 s of work


@pytest.fixture(scope="module")
def endpoint(cluster: Live) -> Live:
    pool = {"autoscaling_config": _SCALING, "num_replicas": None, "ray_actor_options": {"num_cpus": 0.2}}
    slow = echo(pinned=True, delay_s=0.2, batch={"max_items": 1}, timeout_s=60)
    parsed = config(slow, pool=pool)
    parsed["applications"][1]["deployments"][1].pop("num_replicas")
    cluster.deploy(parsed)
    return cluster


def n_running(endpoint: Live) -> int:
    replicas = endpoint.applications()["shared"]["deployments"]["Pool"]["replicas"]
    return sum(replica["state"] == "RUNNING" for replica in replicas)


async def until(endpoint: Live, n_replicas: set[int], within_s: float) -> int:
    """Wait for a number of replicas."""
    give_up = time.monotonic() + within_s
    while (found := await asyncio.to_thread(n_running, endpoint)) not in n_replicas:
        assert time.monotonic() < give_up, f"{found} replicas after {within_s} s"
        await asyncio.sleep(0.5)
    return found


async def test_replicas_follow_a_step_of_load_and_no_request_is_lost(endpoint: Live) -> None:
    faults: list[str] = []
    stop = asyncio.Event()

    async def client(http: httpx.AsyncClient, number: float, pause_s: float, until: asyncio.Event) -> None:
        while not until.is_set():
            answer = await http.post("/v2/models/echo/infer", json=body(number))
            if answer.status_code != 200 or answer.json()["outputs"][0]["data"] != [number]:
                faults.append(f"{answer.status_code} {answer.text[:200]}")
            await asyncio.sleep(pause_s)

    limits = httpx.Limits(max_connections=2 * _CLIENTS)
    over = asyncio.Event()
    async with (
        httpx.AsyncClient(base_url=endpoint.http_url, timeout=90, trust_env=False, limits=limits) as http,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(client(http, -7.0, 0.3, over))  # somebody asks all the time
        await asyncio.sleep(2)
        assert await asyncio.to_thread(n_running, endpoint) == 1
        for number in range(_CLIENTS):
            group.create_task(client(http, float(number), 0.0, stop))
        try:
            assert await until(endpoint, {2, 3}, within_s=90) > 1
        finally:
            stop.set()
        try:
            await until(endpoint, {1}, within_s=90)
            await asyncio.sleep(1)
        finally:
            over.set()
    assert faults == []
