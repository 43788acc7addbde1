"""More than can be done: refused at once, with an honest time to come back, and every answer in our own words."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from echo_pool import body, config, echo
from live_cluster import Live

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def endpoint(cluster: Live) -> Live:
    parsed = config(echo("slow", pinned=True, delay_s=0.05, batch={"max_items": 8}))  # 160 a second at most
    ingress = parsed["applications"][0]["deployments"][0]
    ingress |= {"max_ongoing_requests": 300, "max_queued_requests": 100}
    ingress["logging_config"]["encoding"] = "JSON"
    ingress["user_config"] |= {"bulkhead": {"max_requests": 240}}
    cluster.deploy(parsed)
    return cluster


@dataclass
class Seen:
    codes: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def take(self, status: int, headers: dict[str, str], content: bytes, seconds: float) -> None:
        answer = json.loads(content)
        code = "ok" if status == 200 else answer["code"]
        self.codes[f"{status} {code}"] += 1
        if "server-timing" not in headers or "x-request-id" not in headers:
            self.wrong.append(f"{status} without our headers: {headers}")
        self.ids.append(headers.get("x-request-id", ""))
        if status in (429, 503):
            self.waits.append(int(headers["retry-after"]))
            self.refused_s.append(seconds)


async def attack(endpoint: Live, n_connections: int, seconds: float, **headers: str) -> Seen:
    """Ask on many connections for some seconds, each again as soon as it was answered; read every byte ourselves."""
    seen, ends = Seen(), time.monotonic() + seconds
    content = json.dumps(body(1.0)).encode()
    given = {"host": "h", "content-type": "application/json", "content-length": str(len(content)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    question = f"POST /v2/models/slow/infer HTTP/1.1\r\n{lines}\r\n".encode() + content
    host, port = "127.0.0.1", endpoint.cluster.http_port

    async def one() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        while time.monotonic() < ends:
            started = time.monotonic()
            writer.write(question)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            found = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            if "content-length" not in found:
                seen.wrong.append(f"no content-length: {head}")
                break
            answer = await reader.readexactly(int(found["content-length"]))
            seen.take(int(head[0].split()[1]), found, answer, time.monotonic() - started)
            if found.get("connection") == "close":
                break
            if "retry-after" in found:
                await asyncio.sleep(0.02)  # much earlier than told
        writer.close()

    await asyncio.gather(*(one() for _ in range(n_connections)))
    return seen


async def test_what_would_be_late_is_refused_at_once_and_what_can_be_done_is_done(endpoint: Live) -> None:
    """200 connections that each give half a second, where 160 a second can be answered."""
    patient = await attack(endpoint, 100, 2.0)  # speed is learned from what is answered
    seen = await attack(endpoint, 200, 5.0, **{"x-request-timeout-seconds": "0.5"})
    print(seen.codes, Counter(seen.waits))  # noqa: T201
    assert seen.wrong == []
    assert set(seen.codes) <= {"200 ok", "429 overloaded", "504 deadline_exceeded"}
    assert seen.codes["200 ok"] > 0.3 * patient.codes["200 ok"]
    assert seen.codes["429 overloaded"] > seen.codes["504 deadline_exceeded"]
    assert set(seen.waits) <= {1, 2}


async def test_plain_overload_is_shed_with_the_time_to_come_back(endpoint: Live) -> None:
    """More connections than the bulkhead holds, and than Serve lets in: nobody hears Serve's own words."""
    seen = await attack(endpoint, 600, 5.0)
    print(seen.codes, Counter(seen.waits))  # noqa: T201
    assert seen.wrong == []
    assert set(seen.codes) <= {"200 ok", "429 overloaded"}
    assert seen.codes["200 ok"] > 240
    assert seen.codes["429 overloaded"] > 0
    assert set(seen.waits) <= {1, 2, 3}


async def test_a_header_that_only_serve_cannot_read_harms_nobody(endpoint: Live) -> None:
    """Serve's own handling would answer 400: requests go past it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.cluster.http_port)
    writer.write(b"GET /v2/models/slow HTTP/1.1\r\nhost: h\r\nx-request-id: \xe9\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200")
    assert b"server-timing" in head
    assert head.count(b"x-request-id: ") == 1
    assert b"x-request-id: \xe9" not in head
    writer.close()


async def test_the_access_log_has_a_json_object_a_request(endpoint: Live) -> None:
    seen = await attack(endpoint, 40, 1.0)
    await asyncio.sleep(0.5)
    lines = [line for line in access_log(endpoint) if line["request_id"] in set(seen.ids)]
    assert sorted(line["request_id"] for line in lines) == sorted(seen.ids)
    assert all(line["message"].endswith(f"ms {line['request_id']}") for line in lines)


def access_log(endpoint: Live) -> list[dict[str, Any]]:
    files = (endpoint.cluster.logs / "serve").glob("replica_endpoint_Ingress_*.log")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if "/v2/models/slow/infer" in line["message"]]
