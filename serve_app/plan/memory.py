"""What of each pool fits into its replicas' memory, what takes turns, and where it waits meanwhile."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deployments.spec import ModelSpec, PoolArgs, PoolConfig
from deployments.versions import offered
from serve_app.plan.eviction import evictions, names
from serve_app.validation.applications import POOL, App, read_apps
from serve_app.validation.weights import weight_bytes


def memory(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known of the memory of every pool, from the headers of the models' files."""
    for app in read_apps(config):
        args = app.args() if app.import_path == POOL else None
        if isinstance(args, PoolArgs) and "Pool" in app.deployments:
            yield from _pool(app, args)


def _pool(app: App, args: PoolArgs) -> Iterator[str]:
    policies = PoolConfig.model_validate({"versions": app.user_config("Pool").get("versions") or {}}).versions
    specs = offered({spec.key: spec for _, spec in app.models}, policies)
    sizes = {key: weight_bytes(spec, args.device) for key, spec in specs.items()}
    yield f"pool {app.name}: {_replicas(app)}, each with {_mib(args.budget_bytes)} of {args.device} and {_ram(args)}"
    width = max(map(len, specs), default=0)
    for key, spec in specs.items():
        yield f"  {key.ljust(width)}  {_size(sizes[key])}  {'pinned' if spec.pinned else 'on demand'}"
    yield from _turns(list(specs.values()), sizes, args)


def _turns(specs: Sequence[ModelSpec], sizes: Mapping[str, int | None], args: PoolArgs) -> Iterator[str]:
    pinned = sum(sizes[spec.key] or 0 for spec in specs if spec.pinned)
    demand = {spec.key: sizes[spec.key] or 0 for spec in specs if not spec.pinned}
    room = args.budget_bytes - pinned
    if not demand:
        yield f"  all of it stays in memory: {_mib(pinned)} of {_mib(args.budget_bytes)}"
    elif sum(demand.values()) <= room:
        yield f"  all models fit together: {_mib(pinned + sum(demand.values()))} of {_mib(args.budget_bytes)}"
    else:
        most, fewest = _how_many(sorted(demand.values()), room), _how_many(sorted(demand.values(), reverse=True), room)
        count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        yield f"  {count} of {len(demand)} models on demand fit at once: {_mib(room)} for {_mib(sum(demand.values()))}"
        yield from evictions(specs, sizes, args.budget_bytes)
        parked = _how_many(sorted(demand.values()), args.ram_bytes)
        waits = f"up to {parked} of them in host RAM, then on disk" if parked else "on disk"
        yield f"  where it goes: {waits}; a model takes turns on its own replica first, a hot one on more"
    for spec in specs:
        if spec.idle_unload_s is not None and not spec.pinned:
            yield f"  {spec.key} leaves by itself when it is idle for {spec.idle_unload_s:g} s"
    if unknown := [spec.key for spec in specs if sizes[spec.key] is None]:
        yield f"  of unknown size until it is loaded, so not counted here: {names(unknown)}"


def _how_many(sizes: Sequence[int], room: int) -> int:
    for count, size in enumerate(sizes):
        room -= size
        if room < 0:
            return count
    return len(sizes)


def _replicas(app: App) -> str:
    _, data = app.deployments["Pool"]
    scaling = data.get("autoscaling_config")
    if isinstance(scaling, dict):
        return f"{scaling.get('min_replicas', 1)} to {scaling.get('max_replicas', 1)} replicas"
    n_replicas = data.get("num_replicas", 1)
    return f"{n_replicas} replica{'s' * (n_replicas != 1)}"


def _ram(args: PoolArgs) -> str:
    return f"{_mib(args.ram_bytes)} of host RAM" if args.ram_bytes else "no host RAM"


def _size(n_bytes: int | None) -> str:
    return "   unknown" if n_bytes is None else _mib(n_bytes).rjust(10)


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"
