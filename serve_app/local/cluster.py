"""What a local cluster is: its folders, its ports, and the environments that follow from them.

`Options` is what a caller chooses, `Cluster` what came of it; both are plain values. Every process of the cluster gets
`server_env`, whoever wants to talk to it from outside gets `driver_env`. Called by `node`, `dashboard`, `commands`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from serve_app.local.folders import run_folder
from serve_app.local.ports import Port
from serve_app.local.processes import MARK, Leader

LOOPBACK = "127.0.0.1"
REPLICA_MESSAGE_BYTES = 256 * 1024**2
FRONT = "serve_app.front.middlewares"
# What Serve spends for nobody here; the shell's own values win.
_LEAN: Mapping[str, str] = {
    # A datagram and its handling in Python for each request, to count what `/metrics` counts as well.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Each round the controller copies all of every deployment's configuration: thousands of models, ten times a second.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
    # How often each process hands its counters to Ray's metrics, which are exported every ten seconds.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
}
# Set for another cluster, by hand or by `make env`, each of these would lead our processes there.
_FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_NAMESPACE")


@dataclass(frozen=True, slots=True)
class Options:
    """What may differ between local clusters. A port that is not given is taken from the cluster's own block."""

    http_port: int | None = None
    grpc_port: int | None = None
    throughput: bool = True
    pythonpath: tuple[str, ...] = ()
    num_cpus: int = max(2, os.cpu_count() or 2)
    object_store_bytes: int = 200_000_000
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """One local cluster: where its files are, which block of ports is its own, and who leads it."""

    state_dir: Path
    base: int
    http_port: int
    grpc_port: int
    throughput: bool
    leader: Leader | None = None

    @property
    def run_dir(self) -> Path:
        """Sockets, sessions and logs."""
        return run_folder(self.state_dir)

    @property
    def haproxy_dir(self) -> Path:
        """HAProxy's files; Serve adds a folder a node."""
        return self.run_dir / "h"

    @property
    def logs(self) -> Path:
        """Ray's logs, by a link; Serve's are in its `serve` folder."""
        return self.state_dir / "logs"

    @property
    def start_log(self) -> Path:
        """What `ray start` printed."""
        return self.state_dir / "ray_start.log"

    @property
    def address(self) -> str:
        """What `ray.init(address=...)` takes."""
        return f"{LOOPBACK}:{self.port(Port.GCS)}"

    @property
    def dashboard_url(self) -> str:
        """Where `serve deploy` sends configs to."""
        return f"http://{LOOPBACK}:{self.port(Port.DASHBOARD)}"

    @property
    def http_url(self) -> str:
        """Where clients send requests to."""
        return f"http://{LOOPBACK}:{self.http_port}"

    @property
    def token_path(self) -> Path:
        """The secret that every Ray client must show; 0600."""
        return self.state_dir / "ray_token"

    def port(self, which: Port) -> int:
        """Return the number of one port of this cluster's block."""
        return self.base + which

    def driver_env(self) -> dict[str, str]:
        """Return what `serve deploy`, `serve status` and Ray jobs of another shell need to reach this cluster."""
        on = "1" if self.throughput else "0"
        return {
            "RAY_ADDRESS": self.address,
            "RAY_DASHBOARD_ADDRESS": self.dashboard_url,
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
            # NOTE: on Linux too this makes Ray take 127.0.0.1 for its node's address, and hence listen there alone;
            # `--node-ip-address=127.0.0.1` is replaced by the machine's outer address.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": on,
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": on,
            "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(REPLICA_MESSAGE_BYTES),
        }

    def server_env(self, options: Options, outer: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the whole environment of the cluster's own processes."""
        env = dict(_LEAN) if self.throughput else {}
        env |= {name: value for name, value in outer.items() if name not in _FOREIGN}
        env |= {name: value for name, value in self.driver_env().items() if name not in _FOREIGN}
        env |= self._serve_env()
        env |= {
            MARK: str(self.state_dir),
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": FRONT,
            # One node has nowhere to drain to: Ray would wait these seconds in vain at every stop.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "AUTOSCALER_METRIC_PORT": str(self.port(Port.AUTOSCALER_METRICS)),
            "DASHBOARD_METRIC_PORT": str(self.port(Port.DASHBOARD_METRICS)),
            "PYTHONPATH": os.pathsep.join([*options.pythonpath, *filter(None, [outer.get("PYTHONPATH")])]),
        }
        return env | dict(options.env or {})

    def _serve_env(self) -> dict[str, str]:
        ports = {
            "RAY_SERVE_HAPROXY_STATS_PORT": Port.HAPROXY_STATS,
            "RAY_SERVE_HAPROXY_METRICS_PORT": Port.HAPROXY_METRICS,
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": Port.FALLBACK_HTTP,
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": Port.FALLBACK_GRPC,
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": Port.REPLICA_HTTP,
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": Port.REPLICA_HTTP_END,
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": Port.REPLICA_GRPC,
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": Port.REPLICA_GRPC_END,
        }
        files = {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
        }
        env = {name: str(self.port(port)) for name, port in ports.items()}
        if self.haproxy.exists():
            env["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(self.haproxy)
        return env | {name: str(self.haproxy_dir / file) for name, file in files.items()}

    @property
    def haproxy(self) -> Path:
        """The executable that Serve starts as HAProxy."""
        return self.state_dir / "haproxy"

    @property
    def _record(self) -> Path:
        return self.state_dir / "cluster.json"

    def save(self) -> None:
        """Write the record that `load` reads."""
        self._record.write_text(json.dumps(asdict(self) | {"state_dir": str(self.state_dir)}, indent=2))

    def forget(self) -> None:
        """Remove the record."""
        self._record.unlink(missing_ok=True)

    @classmethod
    def load(cls, state_dir: Path) -> Self | None:
        """Read the record of the cluster that was started from `state_dir`; none if there is none that can be read."""
        try:
            fields = json.loads(state_dir.joinpath("cluster.json").read_text())
            leader = Leader(**fields.pop("leader"))
            return cls(**fields | {"state_dir": state_dir, "leader": leader})
        except (OSError, ValueError, TypeError, KeyError):
            return None
