"""The load client, in a process of its own: `python -m benchmarks.client RESULT` reads one job from standard input.

Raw HTTP/1.1 on asyncio, keep-alive, no client library: about 30 µs a request, for it shares its cores with the server.
Prints `begin` and `end` as its window opens and closes, then writes the file RESULT, as JSON. Closed loop: each
connection sends when it has its answer. Open loop: Poisson arrivals, each on a free connection or a new one,
and latency counts from the *scheduled* arrival, so that a stalled server cannot hide its queue.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import uvloop

_MAX_CONNECTIONS = 1000
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to send; `bodies` is a file with one body a line. With a `rate_per_s` the loop is open."""

    host: str
    port: int
    path: str
    bodies: str
    warm_up_s: float
    window_s: float
    connections: int = 1
    rate_per_s: float = 0.0
    first_body: int = 0
    seed: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Sample:
    """What was seen: completion times (since the start) and latencies of requests done in the window, seconds."""

    began: float = 0.0
    ended: float = 0.0
    cpu_s: float = 0.0  # the client's own, in the window
    done_at: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    is_in_window: list[bool] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is not a subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        status = finished(self._buffer)
        if status is not None and self._answer is not None and not self._answer.done():
            self._buffer.clear()
            self._answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed by the server"))

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> int:
        """Send one request; return the status of its answer."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def finished(buffer: bytearray) -> int | None:
    """Return the status if `buffer` holds a whole answer."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = bytes(buffer[:head_end]).lower()
    status = int(head[9:12])
    at = head.find(b"content-length:")
    if at >= 0:
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        return status if len(buffer) >= head_end + 4 + length else None
    if b"transfer-encoding: chunked" in head:
        return status if buffer.endswith(b"\r\n0\r\n\r\n") else None
    return status


class Load:
    """Runs one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sample = Sample()
        self._requests = cycle(_requests(job))
        self._free: list[Connection] = []
        self._n_connections = 0

    async def run(self) -> Sample:
        """Warm up, measure, return what was seen."""
        work = self._open_loop() if self._job.rate_per_s else self._closed_loops()
        task = asyncio.create_task(work)
        await asyncio.sleep(self._job.warm_up_s)
        self._sample.began = _say("begin")
        own = time.process_time()
        await asyncio.sleep(self._job.window_s)
        self._sample.ended = _say("end")
        self._sample.cpu_s = time.process_time() - own
        if not self._job.rate_per_s:
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
        return self._sample

    async def _closed_loops(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._job.connections):
                group.create_task(self._closed_loop())

    async def _closed_loop(self) -> None:
        while True:
            await self._one(time.monotonic())

    async def _open_loop(self) -> None:
        rng = random.Random(self._job.seed)
        scheduled = time.monotonic()
        end = scheduled + self._job.warm_up_s + self._job.window_s
        async with asyncio.TaskGroup() as group:
            while (scheduled := scheduled + rng.expovariate(self._job.rate_per_s)) < end:
                await asyncio.sleep(max(scheduled - time.monotonic(), 0))
                group.create_task(self._one(scheduled))

    async def _one(self, since: float) -> None:
        """Send one request and note its answer."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                status = await self._ask(next(self._requests))
        except (OSError, TimeoutError) as exc:
            self._fail(type(exc).__name__)
            await asyncio.sleep(0.05)
            return
        if status != 200:
            self._fail(f"HTTP {status}")
            return
        now = time.monotonic()
        self._sample.done_at.append(now)
        self._sample.latency_s.append(now - since)
        # An open loop follows each arrival of its window to its end; a closed one ends with its window.
        counts_from = since if self._job.rate_per_s else now
        self._sample.is_in_window.append(0 < self._sample.began <= counts_from)

    async def _ask(self, request: bytes) -> int:
        connection = await self._connect()
        try:
            status = await connection.ask(request)
        except BaseException:
            connection.close()
            self._n_connections -= 1
            raise
        self._free.append(connection)
        return status

    async def _connect(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
            self._n_connections -= 1
        if self._n_connections >= _MAX_CONNECTIONS:
            raise ConnectionRefusedError("as many connections as the client may have are waiting")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._job.host, self._job.port)
        self._n_connections += 1
        return connection

    def _fail(self, why: str) -> None:
        self._sample.failures[why] = self._sample.failures.get(why, 0) + 1


def _requests(job: Job) -> Iterator[bytes]:
    bodies = Path(job.bodies).read_bytes().splitlines()
    turn = job.first_body % len(bodies)
    headers = {"Host": job.host, "Content-Type": "application/json", **job.headers}
    head = f"POST {job.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    for body in bodies[turn:] + bodies[:turn]:
        yield f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _say(word: str) -> float:
    now = time.monotonic()
    print(word, flush=True)
    return now


def main() -> None:
    job: Any = Job(**json.loads(sys.stdin.readline()))
    sample = uvloop.run(Load(job).run())
    # NOTE: not down the pipe: a line longer than it holds arrived cut short, once in a few hundred runs.
    Path(sys.argv[1]).write_text(json.dumps(asdict(sample)))


if __name__ == "__main__":
    main()
