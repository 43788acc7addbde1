"""Ray Serve's own part of the file: every key and value of its schemas, and where the endpoint can be reached from.

The only file of this package that imports Ray.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

from serve_app.addresses import is_loopback
from serve_app.validation.models import check_model
from serve_app.validation.problems import ABSENT, Place, Problem, nearest

MESSAGE_LIMIT = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
_SERVE_MESSAGE_BYTES = 4 * 2**20  # Serve's default
_GRPC_FLAGS = ("RAY_SERVE_USE_GRPC_BY_DEFAULT", "RAY_SERVE_THROUGHPUT_OPTIMIZED")


def check_shape(data: Mapping[str, Any]) -> list[Problem]:
    """Return why `applications` and `deployments` are not lists of mappings; nothing else can be checked until then."""
    applications = data.get("applications")
    if not isinstance(applications, list):
        return [Problem(("applications",), "expected a list of applications", applications)]
    problems: list[Problem] = []
    for index, application in enumerate(applications):
        place: Place = ("applications", index)
        if not isinstance(application, dict):
            problems.append(Problem(place, "expected a mapping", application))
            continue
        deployments = application.get("deployments", [])
        if not isinstance(deployments, list):
            problems.append(Problem((*place, "deployments"), "expected a list of deployments", deployments))
            continue
        for number, deployment in enumerate(deployments):
            if not isinstance(deployment, dict):
                problems.append(Problem((*place, "deployments", number), "expected a mapping", deployment))
    return problems


def check_serve(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what Serve's models refuse, and what they would drop without a word."""
    yield from check_model(ServeDeploySchema, data, ())
    for options in ("http_options", "grpc_options"):
        port = data[options].get("port") if isinstance(data.get(options), dict) else None
        if isinstance(port, int) and not 0 < port < 65536:
            yield Problem((options, "port"), "ports are 1 to 65535", port)
    yield from _servicers(data.get("grpc_options"))
    for index, application in enumerate(data["applications"]):
        place: Place = ("applications", index)
        yield from _runtime_env(application.get("runtime_env"), (*place, "runtime_env"))
        for number, deployment in enumerate(application.get("deployments", [])):
            options = deployment.get("ray_actor_options")
            if isinstance(options, dict):
                where = (*place, "deployments", number, "ray_actor_options", "runtime_env")
                yield from _runtime_env(options.get("runtime_env"), where)


def check_host(data: Mapping[str, Any], *, is_guarded: bool) -> Iterator[Problem]:
    """Yield a problem if other machines can reach the endpoint; `is_guarded`: it has keys, or says it needs none."""
    options = data.get("http_options")
    host = options.get("host", ABSENT) if isinstance(options, dict) else ABSENT
    if is_guarded or (host is not ABSENT and is_loopback(str(host))):
        return
    absent = "" if host is not ABSENT else "; Serve's default is 0.0.0.0"
    rule = (
        f"other machines reach this address, and the endpoint has no authentication{absent}; write 127.0.0.1, or "
        "configure the Ingress's auth.keys or auth.jwt, or write its auth.allow_anonymous: true"
    )
    yield Problem(("http_options", "host"), rule, host)


def message_limit_bytes(data: Mapping[str, Any], environ: Mapping[str, str]) -> int | None:
    """Return the largest message between replicas as far as it can be known from here, else None."""
    env = dict(environ)
    controller = data.get("controller_options")
    runtime_env = controller.get("runtime_env") if isinstance(controller, dict) else None
    variables = runtime_env.get("env_vars") if isinstance(runtime_env, dict) else None
    env.update(variables if isinstance(variables, dict) else {})
    if (limit := str(env.get(MESSAGE_LIMIT, ""))).isdigit():
        return int(limit)
    return _SERVE_MESSAGE_BYTES if any(env.get(flag) == "1" for flag in _GRPC_FLAGS) else None


def _servicers(options: object) -> Iterator[Problem]:
    """Yield a problem for each servicer function that Serve's proxies could not import: they would not start."""
    functions = options.get("grpc_servicer_functions") if isinstance(options, dict) else None
    for index, path in enumerate(functions if isinstance(functions, list) else []):
        module, _, name = str(path).rpartition(".")
        try:
            is_found = callable(getattr(importlib.import_module(module), name, None))
        except (ImportError, ValueError):
            is_found = False
        if not is_found:
            yield Problem(("grpc_options", "grpc_servicer_functions", index), "no such function can be imported", path)


def _runtime_env(data: object, place: Place) -> Iterator[Problem]:
    if not isinstance(data, dict):
        return
    known: set[str] = RuntimeEnv.known_fields
    for key, value in data.items():
        if key not in known:
            near = nearest(key, known)
            yield Problem((*place, str(key)), "unknown key of a runtime environment", value, near)
    variables = data.get("env_vars")
    for name, value in (variables if isinstance(variables, dict) else {}).items():
        if not isinstance(value, str):
            yield Problem((*place, "env_vars", str(name)), "environment variables are text; put it in quotes", value)
