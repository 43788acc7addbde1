"""The benchmarks' own arithmetic: a wrong yardstick is worse than none."""

import argparse
import asyncio
import re
from itertools import pairwise
from pathlib import Path
from xml.dom.minidom import parseString

import numpy as np
import pytest
import yaml

from benchmarks import (
    batching,
    front_door,
    generation,
    growth,
    multiplex,
    multiplexed_app,
    virtual_time,
    wire,
    workload,
)
from benchmarks.bars import bars
from benchmarks.client import Job, Load, finished
from benchmarks.endtoend import Results
from benchmarks.measure import Measurement, percentile, rate
from benchmarks.plot import Series, bars_svg
from benchmarks.report import table
from benchmarks.sides import all_sides, ours
from benchmarks.variants import Found
from serve_app.validation import check_file


def measured(per_s: float, *, p50_ms: float = 1.0, cpu_s: float = 1.0, turn: int = 0) -> Measurement:
    return Measurement(per_s, p50_ms, 2 * p50_ms, 10, {"pool": cpu_s}, 1.0, {}, turn=turn)


def test_rate_of_lumps_does_not_depend_on_where_the_window_starts() -> None:
    lumps = [second for second in range(0, 20, 2) for _ in range(32)]  # 16 a second, by two seconds' work at once
    assert {rate(lumps, began, began + 9.0) for began in (3.1, 3.5, 3.9, 4.3)} == {16.0}


def test_rate_of_nothing_is_zero() -> None:
    assert rate([], 1.0, 2.0) == 0.0
    assert rate([0.5], 1.0, 2.0) == 0.0


def test_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(range(100), 0.99) == 99


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", None),
        (b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 503),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
    ],
)
def test_client_knows_when_an_answer_is_whole(answer: bytes, status: int | None) -> None:
    assert finished(bytearray(answer)) == status


async def test_open_loop_counts_the_time_a_request_waited_to_be_sent(tmp_path: Path) -> None:
    """A server that answers one request a time, 20 ms each, offered twice that: latency must grow."""
    turn = asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            async with turn:
                await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    bodies = tmp_path / "bodies"
    bodies.write_bytes(b'{"a": 1}\n{"a": 2}')
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sample = await Load(Job("127.0.0.1", port, "/", str(bodies), 0.05, 0.6, rate_per_s=100)).run()
    server.close()
    assert not sample.failures
    assert max(sample.latency_s) > 0.2


@pytest.mark.parametrize("name", ["short", "mixed"])
def test_texts_are_distinct_and_the_same_whatever_their_number(name: str) -> None:
    many = workload.requests(name, 500)
    assert workload.requests(name, 100) == many[:100]
    assert len({text for (text,) in many}) > 490  # of two words, two texts may be alike


def test_words_are_single_tokens() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(workload.model_path() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    lengths = [len(tokenizer.encode(text)) for (text,) in workload.requests("mixed", 300)]
    assert (min(lengths), max(lengths) <= 256) == (4, True)
    assert any(length > 200 for length in lengths)


@pytest.mark.parametrize("one", [wire.v2(), wire.v2(columns=True)])
def test_v2_answers_are_read_row_by_row(one: wire.Wire) -> None:
    answer = b'{"outputs": [{"name": "e", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}]}'
    assert np.array_equal(one.vectors(answer), [[1, 2, 3], [4, 5, 6]])
    assert b'"shape": [2' in one.body(["a", "b"])


def test_our_side_is_a_valid_config(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(yaml.safe_dump(ours()))
    assert not check_file(path)


def test_every_side_has_a_name_of_its_own() -> None:
    sides = all_sides()
    assert [side.name for side in sides.values()] == list(sides)
    assert len({side.title for side in sides.values()}) == len(sides)


def test_bars_compare_with_the_best_peer_and_the_ceiling() -> None:
    results = Results(titles={"ours": "Model Endpoint", "a": "A", "b": "B", "ceiling": "C"})
    results.cells["mixed@64"] = {
        name: [measured(speed, cpu_s=cpu)] for name, speed, cpu in (("ours", 90, 1), ("a", 30, 1), ("b", 20, 1))
    }
    results.cells["mixed@64"]["ceiling"] = [measured(100)]
    found = {bar.text: (bar.found, bar.is_met) for bar in bars(results)}
    assert found == {
        "mixed@64: ours's texts/s ÷ best peer's (a)": (3.0, True),
        "mixed@64: texts/s ÷ bare loop's": (0.9, True),
    }
    assert "Model Endpoint" in table(results)


def test_bars_compare_what_was_measured_in_the_same_round() -> None:
    results = Results()
    results.cells["mixed@64"] = {  # ours failed in the first round, and the machine got slower
        "ours": [measured(60, turn=1), measured(30, turn=2)],
        "a": [measured(40, turn=0), measured(20, turn=1), measured(10, turn=2)],
    }
    assert [(bar.found, bar.is_met) for bar in bars(results)] == [(3.0, True)]


def test_plot_is_well_formed_and_longer_bars_come_first() -> None:
    svg = bars_svg("a < b", ["short@64"], [Series("A & B", [10.0]), Series("C", [20.0]), Series("none", [0.0])])
    parseString(svg)  # noqa: S318  our own
    widths = [float(width) for width in re.findall(r'<rect x="\d+" y="\d+" width="([\d.]+)"', svg)]
    assert len(widths) == 2
    assert all(left > right for left, right in pairwise(widths))


async def _doubled(seconds: float) -> float:
    await asyncio.sleep(seconds)
    await asyncio.gather(asyncio.sleep(seconds), asyncio.sleep(seconds / 2))
    return asyncio.get_running_loop().time()


def test_virtual_time_passes_as_real_time_would() -> None:
    assert virtual_time.run(_doubled(3600.0)) == 7200.0


@pytest.mark.parametrize("name", list(batching.BATCHERS))
def test_each_batcher_answers_every_text_once(name: str) -> None:
    when = batching.arrivals("mixed", 60.0)[:600]
    outcome = batching.simulate(batching.BATCHERS[name], when)
    assert len(outcome.latency_s) == len(when)
    assert outcome.tokens == sum(tokens for _, tokens in when)
    assert outcome.ended >= batching.bound(when).ended * 0.99


def test_our_batches_answer_sooner_than_windows_at_every_load() -> None:
    """The claim of the README, in virtual time: when idle, when busy and when overloaded."""
    for share in (0.1, 0.8, 1.2):
        when = batching.arrivals("short", share * batching.most_per_s("short"))[:3000]
        ours_, windows = (batching.simulate(batching.BATCHERS[n], when) for n in ("ours, packed", "@serve.batch 10 ms"))
        assert percentile(ours_.latency_s, 0.5) < percentile(windows.latency_s, 0.5)
        assert ours_.done_per_s >= windows.done_per_s * 0.99


def test_variants_are_valid_configs(tmp_path: Path) -> None:
    for variant in [*front_door.features(), *(one for series in growth.steps() for one in series)]:
        path = tmp_path / "variant.yaml"
        path.write_text(yaml.safe_dump(variant.config()))
        assert not check_file(path), variant.name


def test_the_access_log_is_held_against_the_default_without_it() -> None:
    names = [one.name for one in front_door.features()]
    found = [
        Found(name, 64, 100.0, 1.0, 2.0, {"ingress": us})
        for name, us in zip(names, (412.0, 350.0, 400.0), strict=False)
    ]
    cost, log = front_door.verdict(found)
    assert "412 µs" in cost
    assert "1.030; bar ≤ 1.03: met" in log
    assert list(front_door.verdict(found[1:2])) == []


def test_both_sides_of_multiplex_get_the_same_memory_and_the_same_arrivals(tmp_path: Path) -> None:
    size = 17 * 2**20
    for replicas in (1, 2, 3):
        args = argparse.Namespace(memory=20, replicas=replicas, models=100, ram_models=80)
        [_, pool, parking, their] = multiplex.config(tmp_path, args, size)["applications"]
        for one in (pool, parking):
            assert one["args"]["budget_bytes"] // size == their["args"]["max_models"] == 20 // replicas
        assert multiplexed_app.build(their["args"]) is not None
    plan = multiplex.arrivals(100, 8.0, 300.0)
    counts = np.bincount([arrival.model for arrival in plan], minlength=100)
    assert 2200 < len(plan) < 2600
    parts = multiplex.turns(plan, 5.0)
    assert [one for part in parts for one in part] == plan
    assert all(part[-1].at_s - part[0].at_s < 5.0 for part in parts)
    assert counts[0] > 1.5 * counts[1] > counts[9]


def test_bars_of_generation_are_medians_of_the_rounds_ratios() -> None:
    def cell(side: str, load: int, per_s: float) -> generation.Cell:
        return generation.Cell(side, load, per_s, 0, 0, 0, 0, 0, 0, 0)

    rounds = [(10.0, 8.0), (2.0, 1.0), (4.0, 5.0)]  # the machine of the second was slow
    cells = [cell("ours", 32, mine) for mine, _ in rounds] + [cell("generate_batch", 32, peer) for _, peer in rounds]
    (ceiling, added) = generation.bars(cells, {"added_ms": 11.0})
    assert (ceiling.found, ceiling.limit, ceiling.is_met) == (1.25, 0.9, True)
    assert not added.is_met
    assert [line.split()[:3] for line in generation.table(cells).splitlines()[1:]] == [
        ["ours", "32", "4.0"],
        ["generate_batch", "32", "5.0"],
    ]
