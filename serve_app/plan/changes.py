"""What deploying a config does to what runs: which replicas restart, which are reconfigured, which are left alone.

The rules are Ray Serve's (2.60): `ray/serve/_private/deploy_utils.py: get_app_code_version` for whole applications,
`ray/serve/_private/version.py` and `config.py` for deployments.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from deployments.discovery import discovered
from deployments.spec import ModelSpec, parse_models

_SERVE = ("http_options", "grpc_options", "proxy_location")  # read once, when Serve starts
_APP_CODE = ("import_path", "runtime_env", "args", "autoscaling_policy")
_REPLICA_CODE = (
    "ray_actor_options",
    "placement_group_bundles",
    "placement_group_strategy",
    "placement_group_bundle_label_selector",
    "placement_group_fallback_strategy",
    "max_replicas_per_node",
    "gang_scheduling_config",
)
_CONTROLLER = ("num_replicas", "max_queued_requests", "rolling_update_percentage", "max_surge_percent")
_Config = Mapping[str, Any]


def changes(old: _Config, new: _Config) -> Iterator[str]:
    """Yield what changes, application by application."""
    for field in _SERVE:
        if field in old and old[field] != new.get(field):
            yield f"Serve itself must be restarted: {field} is read only when it starts"
    before, after = _by_name(old.get("applications")), _by_name(new.get("applications"))
    for name, app in after.items():
        if name in before:
            yield from _application(name, before[name], app)
        else:
            yield f"{name}: started anew"
    for name in before.keys() - after.keys():
        yield f"{name}: removed, its replicas stop"


def _application(name: str, old: _Config, new: _Config) -> Iterator[str]:
    before, after = _by_name(old.get("deployments")), _by_name(new.get("deployments"))
    reasons = [field for field in _APP_CODE if (old.get(field) or {}) != (new.get(field) or {})]
    reasons += _shared_code(before, after)
    if reasons:
        yield f"{name}: all replicas restart, of {', '.join(after)}: {', '.join(reasons)} changed"
    for deployment, fields in after.items():
        parts = list(_deployment(before.get(deployment, {}), fields, is_restarted=bool(reasons)))
        yield from (f"{name}/{deployment}: {part}" for part in parts)
        if not parts and not reasons:
            yield f"{name}/{deployment}: left alone"


def _shared_code(before: Mapping[str, _Config], after: Mapping[str, _Config]) -> list[str]:
    """Return what of any deployment goes into the version that all deployments of an application share."""

    def code(deployments: Mapping[str, _Config]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, fields in deployments.items():
            scaling = fields.get("autoscaling_config")
            if isinstance(scaling, dict):  # its other values do not count, but whether there is one does
                found[f"{name}.autoscaling_config.policy"] = [scaling.get("policy")]
            for field in ("request_router_config", "deployment_actors"):
                if fields.get(field):
                    found[f"{name}.{field}"] = fields[field]
        return found

    old, new = code(before), code(after)
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _deployment(old: _Config, new: _Config, *, is_restarted: bool) -> Iterator[str]:
    changed = sorted(field for field in old.keys() | new.keys() if old.get(field) != new.get(field))
    restarts = [field for field in changed if field in _REPLICA_CODE]
    if restarts and not is_restarted:
        yield f"its replicas restart: {', '.join(restarts)} changed"
    if scaled := [field for field in changed if field in _CONTROLLER]:
        now = ", ".join(f"{field} {old.get(field)} → {new.get(field)}" for field in scaled)
        yield f"no replica restarts for {now}"
    light = [f for f in changed if f not in (*_REPLICA_CODE, *_CONTROLLER, "request_router_config", "user_config")]
    if light and not (restarts or is_restarted):
        yield f"reconfigured without a restart: {', '.join(light)}"
    if "user_config" in changed:
        yield from _user_config(old.get("user_config") or {}, new.get("user_config") or {})


def _user_config(old: _Config, new: _Config) -> Iterator[str]:
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) == new.get(field):
            continue
        if field == "models":
            yield from _models(old, new)
        elif field == "aliases":
            yield from _aliases(old.get(field) or {}, new.get(field) or {})
        else:
            yield f"takes over {field} without a restart"


def _models(old: _Config, new: _Config) -> Iterator[str]:
    before, after = _specs(old), _specs(new)
    drain_s = new.get("drain_s", 30)
    for key, spec in after.items():
        was = before.get(key)
        if was is None:
            yield f"model {key}: added, {'loaded at once' if spec.pinned else 'loaded by its first request'}"
        elif was.digest != spec.digest:
            yield f"model {key}: loaded anew beside the old one, which answers until then"
        elif was != spec:
            yield f"model {key}: takes over its limits without a load"
    for key in before.keys() - after.keys():
        yield f"model {key}: removed, answers for {drain_s:g} s more"


def _aliases(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"alias {name}: removed"
        elif name not in old:
            yield f"alias {name}: stands for {new[name]} at once"
        elif old[name] != new[name]:
            yield f"alias {name}: {old[name]} → {new[name]}, once that is warm"


def _specs(user_config: _Config) -> dict[str, ModelSpec]:
    settings, _ = parse_models(dict(user_config))
    found, _ = discovered(settings.models)
    return {spec.key: spec for spec in found}


def _by_name(entries: Any) -> dict[str, _Config]:
    return {str(entry["name"]): entry for entry in entries or () if isinstance(entry, dict) and "name" in entry}
