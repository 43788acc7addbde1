"""The parts of a local cluster that need no Ray: ports, folders, environments, and which processes are whose."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serve_app.local import node
from serve_app.local.cluster import Cluster, Options
from serve_app.local.dashboard import last_line, with_ports
from serve_app.local.errors import LocalFailure
from serve_app.local.folders import private_folder
from serve_app.local.haproxy import write_wrapper
from serve_app.local.ports import Port, claim_block, is_free, listener
from serve_app.local.processes import MARK, Leader, Process, belonging, end, holds_file, is_alive, leader_of

LONGEST_UNIX_PATH = 107
Spawn = Callable[..., subprocess.Popen[bytes]]


def cluster_in(state_dir: Path, base: int = 12_000, leader: Leader | None = None) -> Cluster:
    return Cluster(state_dir=state_dir, base=base, http_port=8000, grpc_port=9000, throughput=True, leader=leader)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start Python programs that say when they are set up, and end them after the test."""
    started = []

    def start(code: str, env: dict[str, str] | None = None, *, session: bool = False) -> subprocess.Popen[bytes]:
        program = f"{code}\nprint('up', flush=True)\nimport time\ntime.sleep(60)"
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | (env or {}),
            stdout=subprocess.PIPE,
            start_new_session=session,
        )
        assert process.stdout is not None
        process.stdout.readline()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_driver_environment_does_not_mark_a_shell_as_part_of_the_cluster(tmp_path: Path) -> None:
    assert MARK not in cluster_in(tmp_path).driver_env()


def test_server_environment_ignores_another_clusters_address_in_the_shell(tmp_path: Path) -> None:
    shell = {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN": "theirs", "HF_HUB_OFFLINE": "1"}
    env = cluster_in(tmp_path).server_env(Options(), shell)
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & env.keys()
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env[MARK] == str(tmp_path)


def test_two_clusters_share_no_port_and_no_file(tmp_path: Path) -> None:
    one = cluster_in(tmp_path / "one", 12_000).server_env(Options(), {})
    two = cluster_in(tmp_path / "two", 12_500).server_env(Options(), {})
    own = {name for name in one if "HAPROXY" in name or "_PORT" in name} | {MARK, "RAY_AUTH_TOKEN_PATH"}
    own -= {"RAY_SERVE_HAPROXY_METRICS_ENABLED"}
    assert len(own) > 14
    assert [name for name in own if one[name] == two[name]] == []


def test_throughput_flags_can_be_turned_off(tmp_path: Path) -> None:
    plain = Cluster(state_dir=tmp_path, base=12_000, http_port=1, grpc_port=2, throughput=False).driver_env()
    assert {plain["RAY_SERVE_ENABLE_HA_PROXY"], plain["RAY_SERVE_THROUGHPUT_OPTIMIZED"]} == {"0"}


def test_what_serve_does_for_nobody_is_off_unless_the_shell_says_otherwise(tmp_path: Path) -> None:
    name = "RAY_SERVE_HAPROXY_METRICS_ENABLED"
    assert cluster_in(tmp_path).server_env(Options(), {})[name] == "0"
    assert cluster_in(tmp_path).server_env(Options(), {name: "1"})[name] == "1"
    plain = Cluster(state_dir=tmp_path, base=12_000, http_port=1, grpc_port=2, throughput=False)
    assert name not in plain.server_env(Options(), {})


def test_socket_paths_fit_whatever_the_state_folder_is_called(tmp_path: Path) -> None:
    cluster = cluster_in(tmp_path / ("deep/" * 40))
    node_id, temporary = "f" * 56, ".4194304.tmp"
    session = "session_2026-11-24_09-02-02_187975_4194304"
    assert len(str(cluster.haproxy_dir / node_id / f"admin.sock{temporary}")) <= LONGEST_UNIX_PATH
    assert len(str(cluster.run_dir / "ray" / session / "sockets" / "plasma_store")) <= LONGEST_UNIX_PATH


def test_record_survives_saving_and_loading(tmp_path: Path) -> None:
    saved = cluster_in(tmp_path, leader=Leader(1, 2, "boot"))
    saved.save()
    assert Cluster.load(tmp_path) == saved


@pytest.mark.parametrize("content", ["", "{", "[]", '{"base": 1}', '{"leader": null}'])
def test_damaged_record_is_no_record(tmp_path: Path, content: str) -> None:
    tmp_path.joinpath("cluster.json").write_text(content)
    assert Cluster.load(tmp_path) is None
    assert node.running(tmp_path) is None


def test_claimed_block_is_not_given_twice_until_it_is_released() -> None:
    first, claim = claim_block(3)
    second, other = claim_block(3)
    os.close(claim)
    again, last = claim_block(3)
    os.close(other)
    os.close(last)
    assert second != first
    assert again == first


def test_ports_of_a_block_do_not_overlap() -> None:
    assert len(set(Port)) == len(Port.__members__)
    assert max(port for port in Port if port < Port.WORKERS) < Port.WORKERS
    assert (
        Port.WORKERS_END < Port.REPLICA_HTTP < Port.REPLICA_HTTP_END < Port.REPLICA_GRPC < Port.REPLICA_GRPC_END < 500
    )


def test_port_with_a_listener_is_not_free_and_names_its_process() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        assert listener(port) == os.getpid()
    assert is_free("127.0.0.1", port)
    assert listener(port) is None


def test_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("link").symlink_to(tmp_path)
    with pytest.raises(LocalFailure, match="not a folder of ours"):
        private_folder(tmp_path / "link")


def test_process_belongs_by_its_mark_or_its_session_and_nobody_else_does(tmp_path: Path, spawn: Spawn) -> None:
    mark = str(tmp_path)
    leader = spawn("", session=True)
    marked = spawn("", {MARK: mark})
    spawn("", {MARK: f"{mark}/other"})
    child = "import subprocess; p = subprocess.Popen(['sleep', '60'])"
    second = spawn(child, session=True)
    assert {one.pid for one in belonging(mark, leader_of(leader.pid))} == {leader.pid, marked.pid}
    assert len(belonging("no such mark", leader_of(second.pid))) == 2
    os.killpg(second.pid, signal.SIGKILL)


def test_session_of_a_recycled_pid_is_not_ours(spawn: Spawn) -> None:
    process = spawn("", session=True)
    now = leader_of(process.pid)
    recycled = Leader(now.pid, now.started - 1, now.boot)
    assert not is_alive(recycled)
    assert belonging("no such mark", recycled) == []
    assert belonging("no such mark", Leader(now.pid, now.started, "an earlier boot")) == []


def test_dead_process_that_nobody_reaped_is_not_alive(spawn: Spawn) -> None:
    process = spawn("", session=True)
    leader = leader_of(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(leader)


def test_process_that_ignores_a_polite_signal_gets_the_next(tmp_path: Path, spawn: Spawn) -> None:
    spawn("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", {MARK: str(tmp_path)})
    began = time.monotonic()
    end(lambda: belonging(str(tmp_path), None), [(signal.SIGTERM, 0.3), (signal.SIGKILL, 10)])
    assert belonging(str(tmp_path), None) == []
    assert 0.3 < time.monotonic() - began < 5


def test_haproxy_is_known_by_its_config_path_alone() -> None:
    def haproxy(path: str) -> Process:
        return Process(1, 1, 1, ("haproxy", "-db", "-f", path), "")

    folder = Path("/run/mep-1/h")
    assert holds_file(haproxy("/run/mep-1/h/0a1b/haproxy.cfg"), folder, "haproxy.cfg")
    assert not holds_file(haproxy("/run/mep-1/h2/0a1b/haproxy.cfg"), folder, "haproxy.cfg")
    assert not holds_file(haproxy("/run/haproxy-serve/0a1b/haproxy.cfg"), folder, "haproxy.cfg")


def test_config_gets_the_clusters_ports_and_keeps_the_rest(tmp_path: Path) -> None:
    config = {"http_options": {"host": "10.0.0.1", "port": 1, "keep_alive_timeout_s": 5}, "applications": []}
    sent = with_ports(config, cluster_in(tmp_path))
    assert sent["http_options"] == {"host": "10.0.0.1", "port": 8000, "keep_alive_timeout_s": 5}
    assert sent["grpc_options"] == {"port": 9000}
    assert config["http_options"]["port"] == 1


def test_config_without_a_host_listens_on_loopback(tmp_path: Path) -> None:
    assert with_ports({}, cluster_in(tmp_path))["http_options"]["host"] == "127.0.0.1"


def test_last_line_of_a_traceback_is_its_error() -> None:
    assert last_line("Traceback:\n  File x\n    f()\n    ^^^\nValueError: too small\n\n") == "ValueError: too small"
    assert last_line(" \n") == "no message"


def test_haproxy_is_started_without_splicing(tmp_path: Path) -> None:
    cluster = cluster_in(tmp_path)
    assert "RAY_SERVE_HAPROXY_BINARY_PATH" not in cluster.server_env(Options(), {})
    write_wrapper(cluster.haproxy)
    assert cluster.server_env(Options(), {})["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(cluster.haproxy)
    said = subprocess.run([cluster.haproxy, "-vv"], capture_output=True, text=True, check=True).stdout
    assert "HAProxy" in said
    assert cluster.haproxy.read_text().rstrip().endswith("-dS")
