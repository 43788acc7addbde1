"""What `up`, `down` and `env` say and return when they need not start Ray; the rest is in live/test_up.py."""

import fcntl
import os
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from serve_app.local import commands
from serve_app.local.processes import MARK

DEFAULT = Path(__file__).resolve().parents[1] / "serve_config.yaml"


def test_first_model_is_the_first_that_a_pool_lists() -> None:
    pool = {"deployments": [{"name": "Catalog"}, {"name": "Pool", "user_config": {"models": [{"name": "minilm"}]}}]}
    assert (
        commands.first_model({"applications": [{"deployments": [{"name": "Ingress", "user_config": {}}]}, pool]})
        == "minilm"
    )
    assert commands.first_model({}) is None


def test_down_without_a_cluster_succeeds_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.down(state_dir=tmp_path / "up") == 0
    assert commands.down(state_dir=tmp_path / "up") == 0
    assert capsys.readouterr().out.splitlines() == ["nothing is running"] * 2


def test_up_on_a_busy_port_is_one_line_that_names_port_and_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        assert commands.up(DEFAULT, port=port, state_dir=tmp_path / "up") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"port {port} is taken by process {os.getpid()} " in line
    assert "PORT=" in line


def test_up_names_the_wrong_key_before_it_starts_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(DEFAULT.read_text().replace("http_options:", "http_option:"))
    assert commands.up(wrong, state_dir=tmp_path / "up") == 1
    assert "http_option: unknown key" in capsys.readouterr().err
    assert not tmp_path.joinpath("up").exists()


def test_up_without_its_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.up(tmp_path / "none.yaml", state_dir=tmp_path / "up") == 1
    assert capsys.readouterr().err.splitlines() == [f"up: no such file: {tmp_path / 'none.yaml'}"]


def test_second_command_on_the_same_state_folder_is_turned_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tmp_path.joinpath("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert commands.down(state_dir=tmp_path) == 1
    assert "at work" in capsys.readouterr().err


def test_environment_without_a_cluster_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.environment(state_dir=tmp_path) == 1
    assert "make up" in capsys.readouterr().err


def test_down_ends_what_a_crash_left_even_without_a_record(tmp_path: Path) -> None:
    state_dir = tmp_path / "up"
    with subprocess.Popen(["sleep", "60"], env=os.environ | {MARK: str(state_dir)}) as left:
        assert commands.down(state_dir=state_dir) == 0
        assert left.wait(5) == -signal.SIGTERM
