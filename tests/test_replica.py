"""PoolReplica: requests that share a call are answered each on its own, through real threads and engines."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo_engine import POISON
from tiny_models import build

from deployments import loader
from deployments.errors import DeadlineExceeded, EngineFailure, InvalidInput, ModelNotFound, ModelUnavailable
from deployments.replica import PoolReplica
from deployments.spec import ModelSpec, PoolArgs
from deployments.types import InferRequest, InferResult, ModelState, Outcome, text_array


def entry(name: str, path: Path, **fields: Any) -> dict[str, Any]:
    kwargs = {k: fields.pop(k) for k in ("delay_s", "n_bytes", "fails") if k in fields}
    options = {"factory": "echo_engine:Echo", "kwargs": kwargs}
    return {
        "name": name,
        "task": "custom",
        "engine": "custom",
        "source": {"path": str(path)},
        "options": options,
        **fields,
    }


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[PoolReplica]:
    replica = PoolReplica(PoolArgs(budget_bytes=100, cache_dir=str(tmp_path / "cache")))
    yield replica
    await replica.aclose()


def request(*values: float, **fields: Any) -> InferRequest:
    return InferRequest("echo", {"x": np.array(values, np.float32)}, **fields)


async def ask(replica: PoolReplica, key: str, requests: Sequence[InferRequest]) -> list[Outcome]:
    """Return the outcomes in the order of the requests."""
    found: dict[int, Outcome] = {}
    async for some in replica.infer_many(key, requests):
        found.update(some)
    return [found[index] for index in range(len(requests))]


def values(outcome: object) -> list[float]:
    assert isinstance(outcome, InferResult), outcome
    result: list[float] = outcome.outputs["y"].tolist()
    return result


async def test_requests_of_one_call_get_their_own_answers(replica: PoolReplica, tmp_path: Path) -> None:
    replica.configure({"models": [entry("echo", tmp_path)]})
    outcomes = await ask(replica, "echo:1", [request(1, 2), request(3), request(4, 5, 6)])
    assert [values(o) for o in outcomes] == [[1, 2], [3], [4, 5, 6]]
    first = outcomes[0]
    assert isinstance(first, InferResult)
    assert (first.model, first.version, first.usage.n_items) == ("echo", "1", 2)
    assert first.timings.load_s > 0


async def test_one_fault_leaves_the_others_of_its_call_alone(replica: PoolReplica, tmp_path: Path) -> None:
    replica.configure({"models": [entry("echo", tmp_path)]})
    wrong = InferRequest("echo", {"x": np.array(["a"], dtype=object)})
    outcomes = await ask(
        replica, "echo:1", [request(1), request(POISON, 2), wrong, request(3, params={"refuse": True}), request(4)]
    )
    assert values(outcomes[0]) == [1]
    assert isinstance(outcomes[1], EngineFailure)
    assert isinstance(outcomes[2], InvalidInput)
    assert isinstance(outcomes[3], InvalidInput)
    assert values(outcomes[4]) == [4]


async def test_a_request_past_its_time_is_told_so_and_the_next_one_is_served(
    replica: PoolReplica, tmp_path: Path
) -> None:
    replica.configure({"models": [entry("echo", tmp_path, delay_s=0.2)]})
    await ask(replica, "echo:1", [request(0)])
    slow, fine = await ask(replica, "echo:1", [request(1, timeout_s=0.05), request(2, timeout_s=5)])
    assert isinstance(slow, DeadlineExceeded)
    assert values(fine) == [2]


async def test_a_model_that_cannot_load_is_503_and_hurts_nobody(replica: PoolReplica, tmp_path: Path) -> None:
    replica.configure({"models": [entry("bad", tmp_path, fails="no weights here"), entry("echo", tmp_path)]})
    bad, good = await asyncio.gather(ask(replica, "bad:1", [request(1)]), ask(replica, "echo:1", [request(2)]))
    assert isinstance(bad[0], ModelUnavailable)
    assert "no weights here" in bad[0].message
    assert values(good[0]) == [2]
    assert {s.key: s.state for s in replica.statuses()} == {
        "bad:1": ModelState.UNAVAILABLE,
        "echo:1": ModelState.READY,
    }


async def test_an_unknown_model_is_404_for_each_request(replica: PoolReplica) -> None:
    outcomes = await ask(replica, "nope:1", [request(1), request(2)])
    assert [type(o) for o in outcomes] == [ModelNotFound, ModelNotFound]


async def test_only_wanted_outputs_travel_and_unknown_ones_are_refused(replica: PoolReplica, tmp_path: Path) -> None:
    replica.configure({"models": [entry("echo", tmp_path)]})
    some, none = await ask(replica, "echo:1", [request(1, outputs=("y",)), request(1, outputs=("z",))])
    assert values(some) == [1]
    assert isinstance(none, InvalidInput)
    assert "z" in none.message


async def test_models_that_do_not_fit_together_take_turns(replica: PoolReplica, tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    replica.configure({"models": [entry(n, tmp_path, n_bytes=40) for n in names]})
    calls = [ask(replica, f"{n}:1", [request(i)]) for i, n in enumerate(names * 3)]
    answers = await asyncio.gather(*calls)
    assert [values(a[0]) for a in answers] == [[i] for i in range(12)]
    assert replica.status().resident_bytes <= 100


async def test_metrics_show_batches_loads_and_residency(replica: PoolReplica, tmp_path: Path) -> None:
    replica.configure({"models": [entry("echo", tmp_path), {"name": "x"}]})
    await ask(replica, "echo:1", [request(1, 2)])
    samples = {(s.name, s.labels.get("model", "")): s.value for m in replica.collect() for s in m.samples}
    assert samples["model_endpoint_batch_items_sum", "echo"] == 2
    assert samples["model_endpoint_loads_total", "echo"] == 1
    assert samples["model_endpoint_resident_bytes", "echo"] == 10
    assert samples["model_endpoint_rejected_entries", ""] == 1
    assert samples["model_endpoint_budget_bytes", ""] == 100


async def test_a_generating_model_streams_infers_and_frees_what_a_reader_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("llama", tmp_path / "llama")
    replica = PoolReplica(PoolArgs(budget_bytes=2**30, cache_dir=str(tmp_path / "cache")))
    options = {"cache_bytes": "1MiB"}
    source = {"path": str(tmp_path / "llama")}
    replica.configure({"models": [{"name": "g", "task": "text-generation", "source": source, "options": options}]})
    wish = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True}
    asked = InferRequest("g", {"text": text_array(["hello", "you"])}, params=wish)
    (whole,) = await ask(replica, "g:1", [asked])
    assert isinstance(whole, InferResult), whole
    assert whole.outputs["n_tokens"].tolist() == [16, 16]
    assert whole.outputs["finish_reason"].tolist() == [b"length", b"length"]
    assert (whole.usage.n_tokens, whole.usage.n_output_tokens) == (5 + 3 + 32, 32)
    pieces = [chunk async for ready in replica.stream("g:1", asked) for chunk in ready]
    joined = ["".join(c.text for c in pieces if c.index == i) for i in range(2)]
    assert joined == [text.decode() for text in whole.outputs["text"]]
    assert pieces[-1].usage == whole.usage
    assert replica.status().resident_bytes > 2**20

    async with aclosing(replica.stream("g:1", asked)) as left:
        await anext(left)
    with pytest.raises(InvalidInput, match="magic"):
        await anext(replica.stream("g:1", InferRequest("g", asked.inputs, params={"magic": 1})))
    late = InferRequest("g", asked.inputs, params={**wish, "max_tokens": 200}, timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        async for _ in replica.stream("g:1", late):
            pass
    (model,) = replica._residency.models()
    for _ in range(100):
        await asyncio.sleep(0.01)
        if model.queue._task is None:
            break
    assert (model.queue.n_waiting, model.queue.waiting_s) == (0, 0.0)
    samples = {s.name: s.value for m in replica.collect() for s in m.samples if s.labels.get("model") == "g"}
    assert samples["model_endpoint_cache_tokens"] == 0
    assert samples["model_endpoint_generated_tokens_total"] >= 64
    assert samples["model_endpoint_first_token_seconds_count"] == 2
    replica.configure({"models": [entry("echo", tmp_path)]})
    with pytest.raises(InvalidInput, match="does not stream"):
        await anext(replica.stream("echo:1", request(1)))
    await replica.aclose()


async def test_a_call_without_requests_loads_the_model(replica: PoolReplica, tmp_path: Path) -> None:
    replica.configure({"models": [entry("echo", tmp_path)]})
    assert await ask(replica, "echo:1", []) == []
    assert replica.statuses()[0].state is ModelState.READY
    with pytest.raises(ModelNotFound):
        await ask(replica, "nobody:1", [])


async def test_outcomes_leave_as_their_batches_finish(replica: PoolReplica, tmp_path: Path) -> None:
    replica.configure({"models": [entry("echo", tmp_path, delay_s=0.05, batch={"max_items": 4})]})
    chunks = [some async for some in replica.infer_many("echo:1", [request(n) for n in range(10)])]
    assert [len(some) for some in chunks] == [4, 4, 2]
    assert [index for some in chunks for index, _ in some] == list(range(10))


async def test_a_caller_who_stops_listening_withdraws_what_waits(replica: PoolReplica, tmp_path: Path) -> None:
    replica.configure({"models": [entry("echo", tmp_path, delay_s=0.05, batch={"max_items": 1})]})
    calling = replica.infer_many("echo:1", [request(n) for n in range(20)])
    await anext(calling)
    await calling.aclose()
    [answer] = await ask(replica, "echo:1", [request(99)])
    assert values(answer) == [99]
    samples = {s.name: s.value for m in replica.collect() for s in m.samples if s.labels.get("model") == "echo"}
    assert samples["model_endpoint_batch_items_sum"] <= 4


async def test_work_that_waits_upstream_counts_until_it_is_old_news(tmp_path: Path) -> None:
    clock = Clock()
    replica = PoolReplica(PoolArgs(budget_bytes=100, cache_dir=str(tmp_path / "cache")), clock=clock)
    replica.configure({"models": [entry("echo", tmp_path, delay_s=0.05)]})
    for backlog, sender in ((0, "a"), (100, "a"), (300, "b"), (50, "b")):
        async for _ in replica.infer_many("echo:1", [request(1)], backlog, sender):
            pass
    assert replica.waiting_s() > 0
    assert replica._upstream.n_waiting("echo:1") == 150
    clock.ahead_s = 60
    assert replica.waiting_s() == 0
    await replica.aclose()


class Clock:
    ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


async def test_a_flood_on_one_model_delays_another_by_no_more_than_its_running_batch(
    replica: PoolReplica, tmp_path: Path
) -> None:
    slow = {"delay_s": 0.02, "batch": {"max_items": 1}}
    replica.configure({"models": [entry("flood", tmp_path, **slow), entry("quiet", tmp_path, delay_s=0.001)]})
    await ask(replica, "flood:1", [request(1)])
    await ask(replica, "quiet:1", [request(1)])
    flood = asyncio.create_task(ask(replica, "flood:1", [request(n) for n in range(100)]))
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(10):
        began = loop.time()
        await ask(replica, "quiet:1", [request(1)])
        waits.append(loop.time() - began)
    assert not flood.done(), "the flood takes two seconds"
    assert sorted(waits)[5] < 0.1
    assert len(await flood) == 100


async def test_work_that_nobody_waits_for_is_not_done_and_its_neighbours_are(
    replica: PoolReplica, tmp_path: Path
) -> None:
    replica.configure({"models": [entry("echo", tmp_path, delay_s=0.15, batch={"max_items": 1})]})
    await ask(replica, "echo:1", [request(0)])
    found: dict[int, Outcome] = {}

    async def call() -> None:
        async for some in replica.infer_many("echo:1", [request(n) for n in range(8)], sender="a", number=7):
            found.update(some)

    began = time.monotonic()
    running = asyncio.create_task(call())
    await asyncio.sleep(0.05)
    replica.forget("a", {7: [1, 2, 3, 4, 5, 6, 99], 8: [0]})
    replica.forget("b", {7: [0]})
    await running
    assert time.monotonic() - began < 0.15 * 5
    assert {index: values(outcome) for index, outcome in found.items()} == {0: [0.0], 7: [7.0]}


async def test_a_call_that_everybody_left_ends(replica: PoolReplica, tmp_path: Path) -> None:
    replica.configure({"models": [entry("echo", tmp_path, delay_s=0.1)]})

    async def call() -> list[object]:
        return [some async for some in replica.infer_many("echo:1", [request(1), request(2)], sender="a", number=1)]

    running = asyncio.create_task(call())
    await asyncio.sleep(0.02)
    replica.forget("a", {1: [0, 1]})
    async with asyncio.timeout(5):
        assert await running == []


async def test_downloads_that_never_end_hold_up_no_model_that_is_here(
    replica: PoolReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, may_end = loader.fetch, threading.Event()

    def fetch(spec: ModelSpec, cache_dir: Path) -> Path:
        if spec.source.url is not None:
            may_end.wait(30)
        return usual(spec, cache_dir)

    monkeypatch.setattr(loader, "fetch", fetch)
    stuck = [{**entry(f"stuck{n}", tmp_path), "source": {"url": f"file://{tmp_path}/{n}"}} for n in range(40)]
    replica.configure({"models": [*stuck, entry("m", tmp_path)]})
    asking = [asyncio.create_task(ask(replica, f"stuck{n}:1", [request(1.0, timeout_s=20)])) for n in range(40)]
    await asyncio.sleep(0.1)
    try:
        async with asyncio.timeout(5):
            assert values((await ask(replica, "m:1", [request(1.0)]))[0]) == [1.0]
            await asyncio.to_thread(time.sleep, 0)  # nor what else the process does in threads: health checks
    finally:
        may_end.set()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
