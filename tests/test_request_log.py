"""The request log: what is in a line, what is left out, and that nothing ever waits for it."""

import errno
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from deployments.types import Array, InferRequest, InferResult, Timings, Usage, text_array
from serve_app.config import EndpointConfig
from serve_app.context import Context, Door
from serve_app.log_files import RETRY_S, LogFiles
from serve_app.log_payloads import Shown
from serve_app.principals import Principal
from serve_app.protocols.types import Action
from serve_app.request_log import RequestLog
from serve_app.request_log_config import Payloads, RequestLogConfig
from serve_app.telemetry import IngressMetrics


class Case:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = IngressMetrics()
        self.chances: list[float] = []
        self.log = RequestLog(self.metrics, chance=lambda: self.chances.pop(0))

    def configure(self, **fields: object) -> None:
        config = RequestLogConfig.model_validate({"url": str(self.folder), "flush_s": 0.01, **fields})
        self.log.configure(EndpointConfig(request_log=config))

    def record(self, status: int = 200, code: str = "ok", text: str = "a text", **fields: Any) -> Context:
        context = Context("r-1", Door.HTTP, "POST", "/v1/predict", principal=Principal("team-a", "k1"), **fields)
        context.model, context.version, context.arm = "minilm", "3", "canary"
        context.request = InferRequest("minilm", {"text": text_array([text])}, params={"top_k": 3})
        if status == 200:
            outputs = {"score": np.array([[0.5, np.nan]], dtype=np.float32)}
            context.answered(InferResult("minilm", "3", outputs, Usage(1, 7), Timings(run_s=0.0125)))
        context.ended(status, code)
        self.log.record(context)
        return context

    def lines(self) -> list[dict[str, Any]]:
        self.log.close()
        files = sorted(self.folder.glob("requests-*.jsonl"), key=lambda path: int(path.stem.rpartition("-")[2]))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def count(self, name: str, **labels: str) -> float:
        samples = [s for metric in self.metrics.collect() for s in metric.samples if s.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path)
    yield made
    made.log.close()


def test_a_line_says_who_asked_what_and_how_it_went(case: Case) -> None:
    case.configure()
    case.record()
    [line] = case.lines()
    assert abs(time.time() - time.mktime(time.strptime(line["time"][:19], "%Y-%m-%dT%H:%M:%S")) + time.timezone) < 60
    assert line["time"].endswith("Z")
    assert line["phases"].pop("total_ms") > 0
    expected = {
        "request_id": "r-1",
        "door": "http",
        "method": "POST",
        "route": "/v1/predict",
        "action": "infer",
        "principal": "team-a",
        "credential": "k1",
        "model": "minilm",
        "version": "3",
        "arm": "canary",
        "fallback": "",
        "status": 200,
        "code": "ok",
        "phases": {"load_ms": 0.0, "prepare_ms": 0.0, "queue_ms": 0.0, "run_ms": 12.5},
        "n_items": 1,
        "n_tokens": 7,
    }
    assert {name: value for name, value in line.items() if name != "time"} == expected
    assert case.count("model_endpoint_request_log_lines_total") == 1


def test_failures_are_always_there_successes_by_sample_and_probes_only_when_they_fail(case: Case) -> None:
    case.configure(sample=0.5)
    case.chances = [0.4, 0.6]
    case.record()
    case.record()
    case.record(429, "rate_limited")
    case.record(499, "cancelled")
    case.record(action=Action.OPEN)
    case.record(action=Action.METRICS)
    case.record(503, "internal", action=Action.OPEN)
    assert [line["status"] for line in case.lines()] == [200, 429, 499, 503]


def test_without_configuration_nothing_happens(case: Case) -> None:
    case.record()
    assert case.lines() == []


def test_payloads_only_where_they_are_asked_for(case: Case) -> None:
    case.configure(payloads={"sample": 0.5, "models": ["minilm:3"]})
    case.chances = [0.1, 0.9]
    case.record()
    case.record()
    shown, plain = case.lines()
    assert shown["inputs"] == {"text": {"datatype": "BYTES", "shape": [1], "data": ["a text"]}}
    assert shown["outputs"] == {"score": {"datatype": "FP32", "shape": [1, 2], "data": [0.5, None]}}
    assert shown["parameters"] == '{"top_k":3}'
    assert not {"inputs", "outputs", "parameters"} & plain.keys()


def test_payloads_of_other_models_stay_out(case: Case) -> None:
    case.configure(payloads={"models": ["other", "minilm:4"]})
    case.record()
    assert "inputs" not in case.lines()[0]


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_either_half_of_a_payload_can_be_left_out(case: Case, field: str) -> None:
    case.configure(payloads={field: False})
    case.record()
    [line] = case.lines()
    assert ({"inputs", "outputs"} & line.keys()) == {"inputs", "outputs"} - {field}


def show(config: Mapping[str, object], **tensors: Array) -> dict[str, Any]:
    return Shown(Payloads.model_validate(config)).tensors(tensors)


def test_secrets_are_blacked_out_also_where_the_text_is_cut() -> None:
    digits = {"redact": [r"\d{4}-\d{4}", "(?i)password=\\S+"], "max_bytes": 16}
    data = show(digits, text=text_array(["my card 1234-5678 ok", "PASSWORD=x"]))["text"]
    assert data == {"datatype": "BYTES", "shape": [2], "data": ["my card [redacte"], "cut": True}
    for pad in range(40):
        [text] = show(digits, text=text_array(["x" * pad + "1234-5678"]))["text"]["data"]
        assert not any(part in text for part in ("1234-", "1234"))


@pytest.mark.parametrize("n_secrets", [1, 2, 3, 30, 59])
def test_no_half_of_a_secret_is_left_at_the_end(n_secrets: int) -> None:
    """However much shorter the text gets by what is blacked out before."""
    shown = Shown(Payloads(max_bytes=64, redact=(r"sk-[a-z]{40}END",)))
    text = ("." * 7 + "sk-" + "a" * 40 + "END") * n_secrets
    data = shown.tensors({"text": text_array(["." * 61, text, text])})["text"]["data"]
    assert not any("s" in shown.replace("[redacted]", "") for shown in data)
    assert len("".join(data)) <= 64


def test_what_is_large_is_cut_and_says_so() -> None:
    shown = show({"max_bytes": 80}, x=np.arange(1000.0).reshape(10, 100), y=np.zeros(3))
    assert shown["x"] == {"datatype": "FP64", "shape": [10, 100], "data": [float(n) for n in range(10)], "cut": True}
    assert shown["y"] == {"datatype": "FP64", "shape": [3], "data": [], "cut": True}
    many = show({"max_bytes": 10}, text=text_array(["ab"] * 10_000))["text"]
    assert (len(many["data"]), many["cut"]) == (5, True)
    assert len(show({"max_bytes": 10}, text=text_array([""] * 10_000))["text"]["data"]) == 10


def test_hidden_names_and_bytes_that_are_no_text() -> None:
    image = np.array([b"\xff\xd8\x00"], dtype=np.object_)
    shown = show({"hide": ["image*"]}, image=image, other=image)
    assert shown["other"]["data"] == ["��\x00"]
    assert "image" not in shown


class Gate:
    """A store whose writes wait, or fail, on command."""

    def __init__(self) -> None:
        self.open = threading.Event()


def test_a_slow_store_costs_lines_not_time(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()

    def slow(self: LogFiles, lines: object) -> bool:
        gate.open.wait(10)
        return True

    monkeypatch.setattr(LogFiles, "write", slow)
    case.configure(max_waiting=100, max_waiting_bytes=50, payloads={})
    began = time.perf_counter()
    for _ in range(5000):
        case.record()
    assert time.perf_counter() - began < 2.0
    assert case.count("model_endpoint_request_log_dropped_total", part="line") >= 4700
    assert case.count("model_endpoint_request_log_dropped_total", part="payload") > 0
    gate.open.set()


def test_a_store_that_fails_loses_lines_is_left_alone_and_tried_again(tmp_path: Path) -> None:
    now = 0.0
    target = tmp_path / "logs"
    target.write_text("a file where the folder should be")
    files = LogFiles(RequestLogConfig(url=str(target)), lambda: now)
    assert not files.write([b"1\n"])
    target.unlink()
    assert not files.write([b"2\n"])
    now = RETRY_S
    assert files.write([b"3\n"])
    files.close()
    [file] = target.iterdir()
    assert file.read_bytes() == b"3\n"


class Full:
    """A file on a full disk."""

    def __init__(self, name: str) -> None:
        self._file = open(name, "wb")  # noqa: SIM115

    def write(self, block: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self._file.close()


def test_a_full_disk_costs_lines_but_no_file_and_none_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    files = LogFiles(RequestLogConfig(url=str(tmp_path), rotate_bytes=1, keep_files=2), lambda: now)
    for block in (b"1\n", b"2\n"):
        assert files.write([block])
        files.rotate_if_due()
    with monkeypatch.context() as disk:
        disk.setattr(LocalFileSystem, "open", lambda self, name, mode: Full(name))
        for _ in range(20):
            now += RETRY_S
            assert not files.write([b"lost\n"])
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"1\n", b"2\n"]
    assert len(os.listdir("/proc/self/fd")) < 200
    now += RETRY_S
    assert files.write([b"3\n"])
    files.close()
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"2\n", b"3\n"]


def test_a_line_that_no_json_holds_is_lost_alone(case: Case) -> None:
    case.configure()
    case.record()
    case.record(code="\ud800")
    case.record()
    assert len(case.lines()) == 2
    assert case.count("model_endpoint_request_log_dropped_total", part="line") == 1


def test_files_are_closed_by_size_and_by_age_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    now = 0.0
    files = LogFiles(RequestLogConfig(url=str(tmp_path), rotate_bytes=10, rotate_s=60, keep_files=2), lambda: now)
    for block in (b"123456789\n", b"b\n", b"c\n"):
        files.write([block])
        files.rotate_if_due()
    now = 60.0
    files.rotate_if_due()
    files.write([b"d\n"])
    files.close()
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"b\nc\n", b"d\n"]


def test_any_fsspec_store_will_do(case: Case) -> None:
    case.configure(url="memory://logs")
    case.record()
    case.log.close()
    memory = fsspec.filesystem("memory")
    [name] = memory.glob("/logs/*.jsonl")
    assert json.loads(memory.cat(name))["request_id"] == "r-1"
    memory.rm("/logs", recursive=True)


def test_a_new_configuration_takes_over_and_what_waited_is_written(case: Case, tmp_path: Path) -> None:
    case.configure(flush_s=5)
    case.record()
    other = tmp_path / "other"
    case.configure(url=str(other))
    case.record()
    case.log.close()
    deadline = time.monotonic() + 5
    while len([*tmp_path.glob("*.jsonl"), *other.glob("*.jsonl")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "s3://key:secret@bucket/logs"}, "password out"),
        ({"url": "x", "payloads": {"redact": ["("]}}, "regular expression"),
        ({"url": "x", "sample": 2}, "less than or equal to 1"),
    ],
)
def test_wrong_configurations_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        RequestLogConfig.model_validate(fields)
    assert all("secret@" not in error["msg"] for error in caught.value.errors())
