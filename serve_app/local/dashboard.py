"""Talks to a local cluster over HTTP: what `serve deploy` and `serve status` do, without the seconds of importing Ray.

Called by `node`, `commands`, the live tests and the benchmarks. `say` gets one line whenever something has changed.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from serve_app.local.cluster import LOOPBACK, Cluster
from serve_app.local.errors import LocalFailure
from serve_app.local.processes import is_alive

Config = Mapping[str, Any]
Say = Callable[[str], None]
_APPLICATIONS = "/api/serve/applications/"
_POLL_S = 0.5
_UNROUTED_S = 3.0
_RETRIES_S = 20.0
_SETTLE_S = 1.5  # until the ingress has asked its pools again (refresh_s), and knows what a deploy has changed


def silent(line: str) -> None:
    """Say nothing."""


def wait_until_up(cluster: Cluster, timeout_s: float) -> None:
    """Wait for the dashboard's first answer. Raises LocalFailure."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        check_alive(cluster)
        try:
            if _call(cluster, "GET", "/api/ray/version", timeout_s=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(_POLL_S / 2)
    raise LocalFailure(f"Ray did not answer within {timeout_s:g} s; see {cluster.start_log} and {cluster.logs}")


def check_alive(cluster: Cluster) -> None:
    """Raise LocalFailure, with Ray's last words, if the cluster has died."""
    if cluster.leader is None or not is_alive(cluster.leader):
        raise LocalFailure(f"Ray has died: {_last_words(cluster)}; see {cluster.start_log} and {cluster.logs}")


def deploy(cluster: Cluster, config: Config, say: Say = silent, timeout_s: float = 600.0) -> None:
    """Send a Serve config, with this cluster's own ports, and wait until all its applications run.

    Raises:
        LocalFailure: Serve refused it, an application failed, Ray died, or time ran out.
    """
    wait_until_up(cluster, 30)
    try:
        # The first deploy starts the controller and HAProxy before it answers.
        answer = _call(cluster, "PUT", _APPLICATIONS, timeout_s=120, json=with_ports(config, cluster))
    except httpx.HTTPError as exc:
        raise LocalFailure(f"Serve did not answer the deploy: {exc!r}; see {cluster.logs}") from None
    if not answer.is_success:
        raise LocalFailure(f"Serve refused the config ({answer.status_code}): {last_line(answer.text)}")
    names = {application["name"] for application in config.get("applications", [])}
    _wait_running(cluster, names, say, time.monotonic() + timeout_s)


def with_ports(config: Config, cluster: Cluster) -> dict[str, Any]:
    """Return a copy of `config` that listens on this cluster's ports, on loopback unless it names a host."""
    http = {"host": LOOPBACK, **(config.get("http_options") or {}), "port": cluster.http_port}
    grpc = {**(config.get("grpc_options") or {}), "port": cluster.grpc_port}
    return {**config, "http_options": http, "grpc_options": grpc}


def applications(cluster: Cluster) -> dict[str, Any]:
    """Return what Serve tells of each application: status, message, deployments."""
    found: dict[str, Any] = _call(cluster, "GET", _APPLICATIONS, timeout_s=30).raise_for_status().json()["applications"]
    return found


def wait_ready(cluster: Cluster, say: Say = silent, timeout_s: float = 600.0) -> None:
    """Wait until `GET /ready` is 200, or is a route that this config does not have.

    Raises:
        LocalFailure: Ray died, time ran out, or a pinned model failed to load and its retries did too.
    """
    deadline, settled = time.monotonic() + timeout_s, time.monotonic() + _SETTLE_S
    unrouted_until = float("inf")
    before, seen = "", _Readiness()
    while time.monotonic() < deadline:
        check_alive(cluster)
        seen = _readiness(cluster)
        # HAProxy answers 404 too, until it has heard of the application's route.
        is_unrouted = seen.status == httpx.codes.NOT_FOUND
        unrouted_until = min(unrouted_until, time.monotonic() + _UNROUTED_S) if is_unrouted else float("inf")
        is_settled_and_ready = seen.status == httpx.codes.OK and time.monotonic() > settled
        if is_settled_and_ready or time.monotonic() > unrouted_until:
            for name, why in seen.rejected.items():
                say(f"rejected {name}: {why}")
            return
        if seen.has_failed:
            deadline = min(deadline, time.monotonic() + _RETRIES_S)
        if seen.status != httpx.codes.OK and str(seen) != before:
            before = str(seen)
            say(f"waiting for {before}")
        time.sleep(_POLL_S)
    raise LocalFailure(f"not ready: {seen}; see {cluster.logs}")


@dataclass(frozen=True, slots=True)
class _Readiness:
    """An answer of `/ready`; status 0 means that there was none."""

    status: int = 0
    waiting: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_failed(self) -> bool:
        return any(why.startswith("UNAVAILABLE") for why in self.waiting.values())

    def __str__(self) -> str:
        said = "; ".join(f"{name} ({why})" if why else name for name, why in self.waiting.items())
        return said or (f"the endpoint (HTTP {self.status})" if self.status else "the endpoint to answer")


def _readiness(cluster: Cluster) -> _Readiness:
    try:
        answer = httpx.get(f"{cluster.http_url}/ready", timeout=5, trust_env=False)
    except httpx.HTTPError:
        return _Readiness()
    try:
        body = answer.json()
        return _Readiness(answer.status_code, dict(body["waiting"]), dict(body["rejected"]))
    except (ValueError, KeyError, TypeError):
        return _Readiness(answer.status_code)


def last_line(text: str) -> str:
    """Return the last line of a message that says something: of a traceback, the error itself."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" ^~")]
    return lines[-1] if lines else "no message"


def _wait_running(cluster: Cluster, names: set[str], say: Say, deadline: float) -> None:
    before: dict[str, str] = {}
    details: dict[str, Any] = {}
    while time.monotonic() < deadline:
        check_alive(cluster)
        try:
            details = applications(cluster)
        except httpx.HTTPError:
            details = {}
        now = {name: details[name]["status"] for name in sorted(names & details.keys())}
        for name, status in now.items():
            if before.get(name) != status:
                say(f"{name}: {status}")
            if status == "DEPLOY_FAILED":
                raise LocalFailure(f"application '{name}' failed: {last_line(_why(details[name]))}; see {cluster.logs}")
        if now.keys() == names and set(now.values()) <= {"RUNNING"}:
            return
        before = now
        time.sleep(_POLL_S)
    slow = {name: last_line(_why(details.get(name, {}))) for name in names if before.get(name) != "RUNNING"}
    raise LocalFailure(f"not running in time: {slow}; see {cluster.logs}")


def _why(application: Mapping[str, Any]) -> str:
    """Return the deployments' own messages, which say more than the application's."""
    messages = [one.get("message", "") for one in application.get("deployments", {}).values()]
    return "\n".join(filter(None, [application.get("message", ""), *messages]))


def _call(cluster: Cluster, method: str, path: str, *, timeout_s: float, json: Config | None = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {cluster.token_path.read_text()}"}
    with httpx.Client(base_url=cluster.dashboard_url, headers=headers, timeout=timeout_s, trust_env=False) as client:
        return client.request(method, path, json=json)


def _last_words(cluster: Cluster) -> str:
    try:
        return last_line(cluster.start_log.read_text(errors="replace"))
    except OSError:
        return "no log"
