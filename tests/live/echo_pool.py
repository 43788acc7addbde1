"""A small endpoint for live tests: the default file's endpoint and one of its pools, filled with echo models."""

import copy
from pathlib import Path
from typing import Any

import yaml

DEFAULT = Path(__file__).resolve().parents[2] / "serve_config.yaml"
_SOURCE = str(Path(__file__).parent)


def echo(name: str = "echo", *, version: str = "1", **fields: Any) -> dict[str, Any]:
    """Return an entry; the engine's own arguments go there, all else is the entry's own."""
    kwargs = {key: fields.pop(key) for key in ("delay_s", "n_bytes", "fails", "is_whole") if key in fields}
    options = {"factory": "echo_engine:Echo", "kwargs": kwargs}
    source = {"path": _SOURCE}
    entry = {"name": name, "version": version, "task": "custom", "engine": "custom", "source": source}
    return entry | {"options": options, **fields}


def config(*models: dict[str, Any], pool: dict[str, Any] | None = None, args: dict[str, Any] | None = None) -> Any:
    """Return a Serve config; `pool` overrides fields of the Pool deployment, `args` of its application."""
    parsed = copy.deepcopy(yaml.safe_load(DEFAULT.read_text()))
    endpoint, shared = parsed["applications"][0], parsed["applications"][2]
    endpoint["deployments"][0]["user_config"]["pools"] = {"shared": {"required": True}}
    shared["args"] |= args or {}
    shared["deployments"][1] |= {"graceful_shutdown_timeout_s": 5} | (pool or {})
    shared["deployments"][1]["user_config"] |= {"models": list(models), "drain_s": 1}
    return parsed | {"applications": [endpoint, shared]}


def body(*values: float) -> dict[str, Any]:
    """Return the V2 body that asks for these numbers back."""
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(values)], "data": list(values)}]}
