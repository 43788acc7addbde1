"""`model-endpoint`: what it prints and the code it exits with. `up`, `down` and `env` are tested with the clusters."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from config_files import CASSETTE, DEFAULT, changed, write

from deployments.types import ModelState, ModelStatus, PoolStatus, Signature, Task
from serve_app.cli import main
from serve_app.config import PoolRef
from serve_app.protocols.status import EndpointStatus
from serve_app.registry import Registry

Serve = Callable[[bytes, int], str]
FAST = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_AUTH_MODE": "token"}


def status(state: ModelState, environ: dict[str, str], **rejected: str) -> EndpointStatus:
    """Return the status of an endpoint with one pinned model."""
    model = ModelStatus(
        name="minilm",
        version="1",
        task=Task.FEATURE_EXTRACTION,
        signature=Signature((), ()),
        state=state,
        pinned=True,
        timeout_s=30.0,
        size_bytes=90 * 2**20,
    )
    registry = Registry()
    registry.configure({"embeddings": PoolRef()}, {})
    registry.update("embeddings", PoolStatus(models=(model,), rejected=rejected, n_replicas=1))
    return EndpointStatus.of(registry, environ)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers on loopback that answer /status with the given body and code."""
    servers: list[HTTPServer] = []

    def start(body: bytes, code: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(code if self.path == "/status" else 404)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_default_config_validates_with_its_digests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--hash", str(DEFAULT)]) == 0
    assert capsys.readouterr() == (f"{DEFAULT}: valid\n", "")


def test_a_wrong_config_exits_1_and_counts_its_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, changed(((*CASSETTE, "task"), "fil-mask"), (("http_option",), {})))
    assert main(["validate", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "2 problems"
    assert "did you mean 'fill-mask'?" in err


def test_an_exposed_config_needs_to_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, changed((("http_options", "host"), "0.0.0.0"))))  # noqa: S104
    assert main(["validate", path]) == 1
    assert "allow_anonymous: true" in capsys.readouterr().err


def test_files_of_another_machine_can_be_left_out(tmp_path: Path) -> None:
    path = str(write(tmp_path, changed(((*CASSETTE, "source"), {"path": "/models/elsewhere"}))))
    assert main(["validate", path]) == 1
    assert main(["validate", "--no-files", path]) == 0


def test_a_ready_endpoint_exits_0_and_shows_its_models(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    url = serve(status(ModelState.READY, FAST).model_dump_json().encode(), 200)
    assert main(["status", "--url", f"{url}/"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ready: yes",
        "flag: RAY_SERVE_ENABLE_HA_PROXY=1",
        "flag: RAY_SERVE_THROUGHPUT_OPTIMIZED=1",
        "flag: RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=(not set)",
        "flag: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=(not set)",
        "flag: RAY_AUTH_MODE=token",
        "model: minilm:1  READY        feature-extraction  pinned  90.0 MiB",
    ]


def test_a_waiting_endpoint_exits_1_and_says_for_what(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    url = serve(status(ModelState.LOADING, FAST).model_dump_json().encode(), 200)
    assert main(["status", "--url", url]) == 1
    out = capsys.readouterr().out
    assert "ready: no\nwaiting: minilm:1: LOADING\n" in out
    assert out.endswith("not servable\n")


def test_a_refused_entry_exits_1_with_its_reason(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    found = status(ModelState.READY, FAST, **{"bert:1": "task: unknown"})
    assert main(["status", "--url", serve(found.model_dump_json().encode(), 200)]) == 1
    assert "rejected: embeddings/bert:1: task: unknown\n" in capsys.readouterr().out


def test_a_cluster_without_the_flags_is_told_what_it_costs(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", serve(status(ModelState.READY, {}).model_dump_json().encode(), 200)]) == 0
    note = "note: several times slower without RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_THROUGHPUT_OPTIMIZED=1\n"
    assert note in capsys.readouterr().out


@pytest.mark.parametrize(("body", "code", "said"), [(b"{}", 200, "is not a model endpoint"), (b"", 500, "no answer")])
def test_another_server_at_the_address_is_one_line(
    body: bytes, code: int, said: str, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--url", serve(body, code)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_nobody_at_the_address_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.startswith("no answer from http://127.0.0.1:9/status: ")


@pytest.mark.parametrize("argv", [[], ["validate"], ["deploy"], ["up", "--port", "many"]])
def test_wrong_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: model-endpoint" in capsys.readouterr().err
