"""Replicas that die with requests on board, large messages, poison in a batch: nobody else notices."""

import asyncio
import os
import signal
import time

import httpx
import pytest
from echo_engine import POISON
from echo_pool import body, config, echo
from live_cluster import Live

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def endpoint(cluster: Live) -> Live:
    entry = echo(pinned=True, delay_s=0.3, timeout_s=60)
    cluster.deploy(config(entry, echo("whole", is_whole=True)))
    return cluster


async def ask(endpoint: Live, model: str, *values: float) -> httpx.Response:
    async with httpx.AsyncClient(base_url=endpoint.http_url, timeout=90, trust_env=False) as http:
        return await http.post(f"/v2/models/{model}/infer", json=body(*values))


def pool_pids(endpoint: Live) -> list[int]:
    replicas = endpoint.applications()["shared"]["deployments"]["Pool"]["replicas"]
    return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]


async def test_a_pool_replica_that_dies_mid_request_costs_nobody_an_answer(endpoint: Live) -> None:
    asking = [asyncio.create_task(ask(endpoint, "echo", float(n))) for n in range(20)]
    await asyncio.sleep(0.5)
    (pid,) = pool_pids(endpoint)
    os.kill(pid, signal.SIGKILL)
    answers = await asyncio.gather(*asking)
    assert [answer.status_code for answer in answers] == [200] * 20
    assert [answer.json()["outputs"][0]["data"] for answer in answers] == [[float(n)] for n in range(20)]
    assert pid not in pool_pids(endpoint)


async def test_one_poisoned_request_fails_alone(endpoint: Live) -> None:
    answers = await asyncio.gather(*(ask(endpoint, "echo", POISON if n == 3 else float(n)) for n in range(8)))
    codes = [answer.status_code for answer in answers]
    assert codes == [200, 200, 200, 500, 200, 200, 200, 200]
    assert answers[3].json()["code"] == "engine_failure"


async def test_messages_above_4_mib_cross_the_hop(endpoint: Live) -> None:
    values = [float(n % 1000) for n in range(1_500_000)]
    answer = await ask(endpoint, "whole", *values)
    assert answer.status_code == 200, answer.text[:300]
    assert answer.json()["outputs"][0]["data"] == values


async def test_clients_that_leave_take_nobody_with_them(endpoint: Live) -> None:
    leaving = [asyncio.create_task(ask(endpoint, "echo", float(n))) for n in range(10)]
    staying = [asyncio.create_task(ask(endpoint, "echo", float(n))) for n in range(10)]
    await asyncio.sleep(0.2)
    for task in leaving:
        task.cancel()
    assert [answer.status_code for answer in await asyncio.gather(*staying)] == [200] * 10


async def test_a_holder_that_dies_delays_nobody_while_another_could_serve(cluster: Live) -> None:
    entry = echo(pinned=True, delay_s=0.02, timeout_s=30)
    two = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.25}}
    cluster.deploy(config(entry, pool=two))
    killed_at, answers = 0.0, []

    async def client(http: httpx.AsyncClient) -> None:
        while not killed_at or time.monotonic() < killed_at + 4:
            began = time.monotonic()
            answer = await http.post("/v2/models/echo/infer", json=body(1.0))
            answers.append((began, time.monotonic() - began, answer.status_code))
            await asyncio.sleep(0.05)

    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=30, trust_env=False) as http:
        clients = [asyncio.create_task(client(http)) for _ in range(6)]
        await asyncio.sleep(3)
        os.kill(pool_pids(cluster)[0], signal.SIGKILL)
        killed_at = time.monotonic()
        await asyncio.gather(*clients)
    assert {status for *_, status in answers} == {200}
    before = [seconds for began, seconds, _ in answers if began < killed_at - 1]
    after = [seconds for began, seconds, _ in answers if began > killed_at - 1]
    assert max(after) < max(1.0, 3 * max(before)), "nobody waits for the dead one: Serve replaces it after seconds"


async def test_a_frozen_holder_delays_nobody_for_long(cluster: Live) -> None:
    """Unlike a dead one it refuses nothing, and Serve takes half a minute to find out."""
    entry = echo(pinned=True, delay_s=0.02, timeout_s=30)
    cluster.deploy(config(entry, pool={"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.25}}))
    async with asyncio.timeout(60):  # the one that died before has been replaced
        while len(pids := pool_pids(cluster)) < 2:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.5)
    await asyncio.sleep(2)  # the endpoint has heard of both
    answers: list[tuple[float, float, int]] = []
    frozen_at = time.monotonic() + 1

    async def client(http: httpx.AsyncClient) -> None:
        while time.monotonic() < frozen_at + 8:
            began = time.monotonic()
            answer = await http.post("/v2/models/echo/infer", json=body(1.0))
            answers.append((began - frozen_at, time.monotonic() - began, answer.status_code))
            await asyncio.sleep(0.05)

    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=30, trust_env=False) as http:
        clients = [asyncio.create_task(client(http)) for _ in range(6)]
        await asyncio.sleep(1)
        os.kill(pids[0], signal.SIGSTOP)
        try:
            await asyncio.gather(*clients)
        finally:
            os.kill(pids[0], signal.SIGCONT)
    assert {status for *_, status in answers} == {200}
    assert max(seconds for _, seconds, _ in answers) < 6, "three seconds of silence, and the answer of another"
    assert max(seconds for began, seconds, _ in answers if began > 5) < 1, "who comes later goes elsewhere at once"
