"""Who, how much, and what is written down, with two ingress replicas, a real Redis and a real issuer of tokens."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from echo_pool import body, config, echo
from issuer import AUDIENCE, ISSUER, Issuer, serving
from live_cluster import Live
from redis_server import RedisServer, needs_redis, running

from serve_app.cli import main
from serve_app.rpc import inference_pb2 as pb

pytestmark = [pytest.mark.timeout(300), needs_redis]

PER_S, BURST = 15.0, 5


class Endpoint:
    """Two ingress replicas that share their limits, with an operator's key file beside them."""

    def __init__(self, cluster: Live, folder: Path, redis: RedisServer, issuer: Issuer) -> None:
        self.cluster = cluster
        self.folder = folder
        self.redis = redis
        self.issuer = issuer
        self.key_file = folder / "keys.json"
        self.secrets: list[str] = []

    def deploy(self) -> None:
        parsed = config(echo(pinned=True), echo("slow", pinned=True, delay_s=0.6, batch={"max_items": 1}))
        ingress = parsed["applications"][0]["deployments"][0]
        ingress |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.3}, "graceful_shutdown_timeout_s": 5}
        (self.folder / "redis.url").write_text(self.redis.url)
        ingress["user_config"] |= {
            "auth": {
                "keys": f"file:{self.key_file}",
                "jwt": {
                    "issuer": ISSUER,
                    "audience": AUDIENCE,
                    "jwks_url": self.issuer.url,
                    "grants": {"use": {"actions": ["infer"], "models": ["echo"]}},
                },
            },
            "limits": {
                "rules": [
                    {"name": "steady", "principals": ["steady"], "requests": {"per_s": PER_S, "burst": BURST}},
                    {"name": "few", "principals": ["few"], "concurrency": 2},
                ],
                "redis": {"url": f"file:{self.folder}/redis.url", "on_failure": "closed"},
            },
            "request_log": {"url": f"{self.folder}/log", "flush_s": 0.1, "payloads": {"redact": ["7\\.5"]}},
        }
        self.cluster.deploy(parsed)

    def create(self, principal: str, *args: str, capsys: pytest.CaptureFixture[str]) -> str:
        capsys.readouterr()
        assert main(["keys", "create", "--file", str(self.key_file), "--principal", principal, *args]) == 0
        self.secrets.append(capsys.readouterr().out.strip())
        return self.secrets[-1]

    def client(self, key: str = "") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=64)
        return httpx.AsyncClient(
            base_url=self.cluster.http_url, headers=headers, timeout=60, trust_env=False, limits=limits
        )

    async def ask(self, key: str, model: str = "echo") -> httpx.Response:
        async with self.client(key) as http:
            return await http.post(f"/v2/models/{model}/infer", json=body(7.5))

    def lines(self) -> list[dict[str, Any]]:
        time.sleep(0.5)
        files = sorted((self.folder / "log").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    async def metric(self, key: str, name: str) -> list[float]:
        async with self.client(key) as http:
            page = (await http.get("/metrics")).text
        return [float(value) for value in re.findall(rf"^model_endpoint_{name}{{.*}} (\S+)$", page, re.MULTILINE)]

    def pids(self) -> set[int]:
        replicas = self.cluster.applications()["endpoint"]["deployments"]["Ingress"]["replicas"]
        return {replica["pid"] for replica in replicas}


@pytest.fixture(scope="module")
def endpoint(cluster: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("policies")
    with running(folder) as redis, serving() as issuer:
        made = Endpoint(cluster, folder, redis, issuer)
        made.deploy()
        yield made


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Wait until both replicas agree: five times in a row, since each answers in turn."""
    ends, in_a_row = time.monotonic() + timeout_s, 0
    while in_a_row < 5:
        in_a_row = in_a_row + 1 if await condition() else 0
        assert time.monotonic() < ends
        await asyncio.sleep(0.1 if not in_a_row else 0.02)


async def status_is(endpoint: Endpoint, key: str, status: int, model: str = "echo") -> bool:
    return (await endpoint.ask(key, model)).status_code == status


async def test_keys_come_and_go_without_a_restart(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    before = endpoint.pids()
    assert len(before) == 2
    assert (await endpoint.ask("")).status_code == 401
    async with endpoint.client() as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/ready")).status_code == 200
        assert (await http.get("/metrics")).status_code == 401
    key = endpoint.create("team-a", "--models", "echo", capsys=capsys)
    await until(lambda: status_is(endpoint, key, 200))
    refused = await endpoint.ask(key, "slow")
    assert (refused.status_code, "slow" in refused.json()["error"]) == (403, True)
    async with endpoint.client(key) as http:
        assert (await http.get("/v2/models")).json() == {"models": ["echo"]}
        assert "server-timing" in (await http.get("/v2/models")).headers
    assert main(["keys", "revoke", "--file", str(endpoint.key_file), key.split("_")[1]]) == 0
    await until(lambda: status_is(endpoint, key, 401))
    assert endpoint.pids() == before


async def test_grpc_reads_the_key_from_the_call_s_metadata(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    key = endpoint.create("team-grpc", "--models", "echo", capsys=capsys)
    await until(lambda: status_is(endpoint, key, 200))
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(7.5)

    async def ask(model: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
        try:
            await infer(pb.ModelInferRequest(model_name=model, inputs=[tensor]), metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as exc:
            return exc.code()
        return grpc.StatusCode.OK

    async with grpc.aio.insecure_channel(f"127.0.0.1:{endpoint.cluster.cluster.grpc_port}") as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        bearer = ("authorization", f"Bearer {key}")
        codes = [
            await ask("echo", bearer),
            await ask("slow", bearer),
            await ask("echo"),
            await ask("echo", ("authorization", f"Bearer {key}x")),
        ]
    status = grpc.StatusCode
    assert codes == [status.OK, status.PERMISSION_DENIED, status.UNAUTHENTICATED, status.UNAUTHENTICATED]


async def test_tokens_of_the_issuer_are_taken_also_after_it_changed_its_key(endpoint: Endpoint) -> None:
    assert (await endpoint.ask(endpoint.issuer.token())).status_code == 200
    assert (await endpoint.ask(endpoint.issuer.token(aud="another"))).status_code == 401
    assert (await endpoint.ask(endpoint.issuer.token(scope="other"))).status_code == 403
    endpoint.issuer.rotate()
    await until(lambda: status_is(endpoint, endpoint.issuer.token(), 200))


async def test_one_rate_over_both_replicas_is_neither_exceeded_nor_wasted(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    key, lasts_s = endpoint.create("steady", capsys=capsys), 10.0
    await until(lambda: _known(endpoint, key))
    await asyncio.sleep(BURST / PER_S + 0.2)
    seen: Counter[int] = Counter()
    async with endpoint.client(key) as http:
        began = time.monotonic()
        beats = [began]

        async def beat() -> None:
            while time.monotonic() < began + lasts_s:
                await asyncio.sleep(0.02)
                beats.append(time.monotonic())

        async def keep_asking() -> None:
            while time.monotonic() < began + lasts_s:
                answer = await http.post("/v2/models/echo/infer", json=body(1.0))
                seen[answer.status_code] += 1
                if answer.status_code == 429:
                    assert answer.headers["ratelimit-remaining"] == "0"
                    await asyncio.sleep(0.03)

        await asyncio.gather(beat(), *(keep_asking() for _ in range(12)))
        elapsed = time.monotonic() - began
    assert set(seen) == {200, 429}
    assert seen[200] <= PER_S * elapsed + BURST
    # What a full bucket loses while this machine stands still, this process with it, is nobody's waste.
    stood_s = sum(max(later - before - BURST / PER_S, 0.0) for before, later in pairwise(beats))
    assert seen[200] >= 0.98 * PER_S * (lasts_s - stood_s), f"this machine stood still for {stood_s:.2f} s"


async def _known(endpoint: Endpoint, key: str) -> bool:
    async with endpoint.client(key) as http:
        return (await http.get("/v2/models")).status_code == 200


async def test_a_client_that_leaves_gives_its_place_back_and_its_work_is_not_done(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    key = endpoint.create("few", capsys=capsys)
    await until(lambda: _known(endpoint, key))
    async with endpoint.client(key) as http:
        first = asyncio.create_task(http.post("/v2/models/slow/infer", json=body(1.0)))
        await asyncio.sleep(0.1)
        leaving = asyncio.create_task(http.post("/v2/models/slow/infer", json=body(*range(20))))  # 12 s of work
        await asyncio.sleep(0.2)
        assert (await http.post("/v2/models/slow/infer", json=body(1.0))).status_code == 429
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await first).status_code == 200
        began = time.monotonic()
        assert (await http.post("/v2/models/slow/infer", json=body(1.0))).status_code == 200
        assert time.monotonic() - began < 4.0
    async with endpoint.client(endpoint.create("many", capsys=capsys)) as http:
        await until(lambda: _known(endpoint, endpoint.secrets[-1]))
        crowd = [asyncio.create_task(http.post("/v2/models/slow/infer", json=body(1.0))) for _ in range(16)]  # 9.6 s
        await asyncio.sleep(0.4)
        for task in crowd[1:-1]:
            task.cancel()
        await asyncio.gather(*crowd[1:-1], return_exceptions=True)
        began = time.monotonic()
        assert [(await task).status_code for task in (crowd[0], crowd[-1])] == [200, 200]
        assert time.monotonic() - began < 5.0, "work was done for clients that had left"
    line = next(line for line in endpoint.lines() if line["principal"] == "few" and line["status"] == 499)
    assert line["code"] == "cancelled"


async def test_a_redis_that_dies_closes_as_configured_and_says_so(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    key = endpoint.create("steady", "--actions", "infer,read,metrics", capsys=capsys)
    free = endpoint.create("free", capsys=capsys)
    await until(lambda: status_is(endpoint, key, 200))
    assert min(await endpoint.metric(key, "limit_store_up")) == 1
    endpoint.redis.stop()
    answer = await endpoint.ask(key)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await endpoint.ask(free)).status_code == 200, "no limit applies to it"
    assert min(await endpoint.metric(key, "limit_store_up")) == 0
    endpoint.redis.start()
    await until(lambda: status_is(endpoint, key, 200))
    assert sum(await endpoint.metric(key, "limit_store_failures_total")) >= 1


async def test_every_request_is_written_down_and_no_secret_anywhere(endpoint: Endpoint) -> None:
    lines = endpoint.lines()
    assert {200, 401, 403, 429, 499, 503} <= {line["status"] for line in lines}
    assert {"team-a", "jwt:alice", "steady", "few", ""} <= {line["principal"] for line in lines}
    good = next(line for line in lines if line["status"] == 200 and line["principal"] == "jwt:alice")
    assert (good["model"], good["version"], good["door"], good["n_items"]) == ("echo", "1", "http", 1)
    assert good["phases"]["total_ms"] >= good["phases"]["run_ms"] > 0
    assert good["inputs"]["x"]["data"] == [7.5]
    assert len(list((endpoint.folder / "log").glob("*.jsonl"))) >= 2, "each replica writes its own"
    cluster = endpoint.cluster.cluster
    session = (cluster.run_dir / "ray" / "session_latest").resolve()
    logs = [path for folder in (cluster.state_dir, session / "logs") for path in folder.rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in [*logs, *(endpoint.folder / "log").iterdir(), endpoint.key_file]]
    assert any(b'audit {"act":"keys","added":[' in text for text in texts), "logs were looked through"
    secrets = [key.split("_", 2)[2].encode() for key in endpoint.secrets]
    assert len(secrets) >= 4
    assert not any(secret in text for secret in secrets for text in texts)
    key = endpoint.secrets[-2]
    async with endpoint.client(key) as http:
        page = (await http.get("/metrics")).text
    assert not any(secret.decode() in page for secret in secrets)
    status = json.dumps(endpoint.cluster.applications())
    assert not any(secret.decode() in status for secret in secrets)
    assert endpoint.redis.url not in status
