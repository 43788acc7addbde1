"""Talks to a local cluster over HTTP: what `serve deploy` and `serve status` do, without the seconds of importing Ray.

Called by `node`, `commands`, the live tests and the benchmarks. `say` gets one line whenever something has changed.
"""

import time
from collections.abc import Callable, Mapping
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
    check_alive(cluster)
    # The first deploy starts the controller and HAProxy before it answers.
    answer = _call(cluster, "PUT", _APPLICATIONS, timeout_s=120, json=with_ports(config, cluster))
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
    """Wait until `GET /ready` is 200, or is a route that this config does not have. Raises LocalFailure."""
    deadline = time.monotonic() + timeout_s
    unrouted_since: float | None = None
    before = ""
    while time.monotonic() < deadline:
        check_alive(cluster)
        status, waiting = _readiness(cluster)
        if status == httpx.codes.OK:
            return
        # HAProxy answers 404 too, until it has heard of the application's route.
        unrouted_since = (unrouted_since or time.monotonic()) if status == httpx.codes.NOT_FOUND else None
        if unrouted_since is not None and time.monotonic() - unrouted_since > _UNROUTED_S:
            return
        if waiting != before:
            say(f"waiting for {waiting}")
            before = waiting
        time.sleep(_POLL_S)
    raise LocalFailure(f"not ready after {timeout_s:g} s: {before or 'no answer'}; see {cluster.logs}")


def last_line(text: str) -> str:
    """Return the last line of a message that says something: of a traceback, the error itself."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" ^~")]
    return lines[-1] if lines else "no message"


def _readiness(cluster: Cluster) -> tuple[int, str]:
    """Return the status of `/ready` (0: nothing answers) and what it is waiting for, in words."""
    try:
        answer = httpx.get(f"{cluster.http_url}/ready", timeout=5, trust_env=False)
    except httpx.HTTPError:
        return 0, f"{cluster.http_url} to answer"
    try:
        waiting = answer.json()["waiting"]
        return answer.status_code, "; ".join(f"{name}: {why}" for name, why in waiting.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.status_code, f"{cluster.http_url}/ready ({answer.status_code})"


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
