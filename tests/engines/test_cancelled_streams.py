"""200 streams through a whole replica with a real engine, most of them left at random: nothing stays behind."""

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

from test_lora import ask, entry
from tiny_models import adapter_folder

from deployments.chunks import collect
from deployments.generating import GeneratingModel
from deployments.replica import PoolReplica
from deployments.spec import PoolArgs


async def test_streams_left_at_random_leave_no_cache_and_no_task(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    base, adapter = tiny("llama"), adapter_folder(tmp_path / "a", 1)
    replica = PoolReplica(PoolArgs(budget_bytes=64 << 20, cache_dir=str(tmp_path / "cache")))
    narrow = {"cache_bytes": "64KiB"}  # room for a few at a time, so that many wait, and some are sent back to wait
    replica.configure({"models": [entry("base", base, options=narrow), entry("a", adapter, base="base:1")]})
    expected = {name: (await collect(replica.stream(f"{name}:1", ask("hello")))).outputs for name in ("base", "a")}
    await asyncio.sleep(0.05)
    tasks_before, threads_before = len(asyncio.all_tasks()), set(threading.enumerate())
    chance = random.Random(7)

    async def read_a_little(name: str, n_pieces: int) -> None:
        async with aclosing(replica.stream(f"{name}:1", ask("hello"))) as pieces:
            async for _ in pieces:
                n_pieces -= 1
                if n_pieces < 0:
                    return

    async def read_all(name: str) -> None:
        answer = await collect(replica.stream(f"{name}:1", ask("hello")))
        assert answer.outputs["text"].tolist() == expected[name]["text"].tolist()

    tasks = []
    for index in range(200):
        name = chance.choice(["base", "a"])
        one = read_all(name) if index % 5 == 0 else read_a_little(name, chance.randint(0, 6))
        tasks.append(asyncio.create_task(one))
        if index % 5 in (1, 2):
            asyncio.get_running_loop().call_later(chance.uniform(0, 1), tasks[-1].cancel)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}

    for _ in range(500):
        if len(asyncio.all_tasks()) > tasks_before:
            await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) <= tasks_before
    assert set(threading.enumerate()) <= threads_before
    slots = replica._residency.slots()
    assert [(slot.n_leases, slot.n_held) for slot in slots] == [(0, 0), (0, 0)]
    model = next(slot.model for slot in slots if isinstance(slot.model, GeneratingModel))
    batch = model.engine._batch  # type: ignore[attr-defined]
    assert (batch._running, batch._starting, list(batch._waiting)) == ([], [], [])
    assert (model.queue._open, model.queue._joining, model.queue._leaving) == ({}, [], [])
    samples = [sample for metric in replica.collect() for sample in metric.samples]
    assert [s.value for s in samples if s.name == "model_endpoint_cache_tokens" and s.labels["model"] == "base"] == [
        0.0
    ]
    await replica.aclose()
