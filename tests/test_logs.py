"""The log that operators read: a line a request, well-formed, with its own id, written soon, in Serve's format."""

import contextvars
import json
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

import pytest
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.context import _RequestContext, _serve_request_context
from ray.serve.schema import LoggingConfig

from deployments.logs import Line, log_through_serve, write_lines

ACCESS = logging.getLogger("serve_app.access")
LINES = [
    Line(f"POST /v1/x{quote} 200 1.0ms r-{n}{quote}", f"r-{n}{quote}") for n, quote in enumerate(("", '"', "\\", "é"))
]
SLOTS = Line("GET /@the-request@ 200 @the-line@", "@the-line@")


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Configure Serve's logger as in a replica with the throughput flag; yield its file."""
    loggers = [logging.getLogger(name) for name in ("ray.serve", "serve_app", "deployments")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    config = LoggingConfig(encoding=request.param, logs_dir=str(tmp_path), log_level="WARNING", enable_access_log=False)
    configure_component_logger(
        component_name="Ingress",
        component_id="r1",
        logging_config=config,
        max_bytes=10_000_000,
        backup_count=2,
        buffer_size=1000,
    )
    log_through_serve()
    yield next(tmp_path.glob("*.log"))
    for handler in logging.getLogger("ray.serve").handlers:
        handler.close()
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


@pytest.mark.parametrize("serve", ["TEXT"], indirect=True)
def test_each_line_of_the_file_is_one_request(serve: Path) -> None:
    write_lines(ACCESS, [*LINES, SLOTS])
    written = serve.read_text().splitlines()
    assert len(written) == len(LINES) + 1
    for line, (text, request_id) in zip(written, [*LINES, SLOTS], strict=True):
        assert line.startswith("INFO 20")
        assert line.endswith(f" Ingress r1 {request_id} -- {text}")


@pytest.mark.parametrize("serve", ["JSON"], indirect=True)
def test_each_line_of_the_file_is_one_json_object(serve: Path) -> None:
    write_lines(ACCESS, [*LINES, SLOTS])
    written = [json.loads(line) for line in serve.read_text().splitlines()]
    assert [(line["message"], line["request_id"]) for line in written] == [*LINES, SLOTS]
    assert {line["component_id"] for line in written} == {"r1"}
    assert {line["levelname"] for line in written} == {"INFO"}


@pytest.mark.parametrize("serve", ["JSON", "TEXT"], indirect=True)
def test_lines_do_not_take_the_id_of_the_request_that_wrote_them(serve: Path) -> None:
    def inside() -> None:
        _serve_request_context.set(_RequestContext(request_id="the-writer", route="/"))
        write_lines(ACCESS, LINES)

    contextvars.copy_context().run(inside)
    assert "the-writer" not in serve.read_text()


@pytest.mark.parametrize("serve", ["TEXT"], indirect=True)
def test_a_warning_is_written_at_once_and_other_records_are_as_ever(serve: Path) -> None:
    logger = logging.getLogger("serve_app.limits")
    logger.info("one of many %s", "r-1")
    assert serve.read_text() == ""
    write_lines(ACCESS, LINES[:1])
    logger.warning("this matters: %s", "@the-line@")
    written = serve.read_text().splitlines()
    assert [line.rpartition(" r1 ")[2] for line in written] == [
        "-- one of many r-1",
        "r-0 -- POST /v1/x 200 1.0ms r-0",
        "-- this matters: @the-line@",
    ]


@pytest.mark.parametrize("serve", ["TEXT"], indirect=True)
def test_files_rotate_between_lines(serve: Path) -> None:
    [memory] = [h for h in logging.getLogger("ray.serve").handlers if isinstance(h, MemoryHandler)]
    assert isinstance(memory.target, RotatingFileHandler)
    memory.target.maxBytes = 2_000
    for _ in range(20):
        write_lines(ACCESS, LINES)
    files = sorted(serve.parent.glob("*.log*"))
    assert len(files) == 3
    assert all(file.stat().st_size <= 2_000 for file in files)
