"""Whether what is asked of a pool can be: files that exist and fit, calls that get through, a device that is there."""

from collections.abc import Collection, Iterator, Mapping

from deployments.spec import ModelSpec, PoolArgs
from serve_app.config import EndpointArgs
from serve_app.validation.applications import ENDPOINT, POOL, App
from serve_app.validation.problems import ABSENT, Place, Problem, nearest
from serve_app.validation.weights import check_files, weight_bytes

ROUTER = "deployments.router:ModelRouter"
_CALLS_A_MODEL = 4  # two lanes of two calls each, from one ingress replica
_FEW_REQUESTS = 32


def check_capacity(
    apps: Collection[App], message_bytes: int | None, *, reads_files: bool, hashes_files: bool
) -> Iterator[Problem]:
    """Yield what cannot work, and warn of what works badly."""
    for app in apps:
        args = app.args() if app.import_path in {ENDPOINT, POOL} else None
        if isinstance(args, EndpointArgs):
            yield from _ingress(app, args, message_bytes)
        elif isinstance(args, PoolArgs) and "Pool" in app.deployments:
            yield from _pool(app, args)
            sizes: dict[str, int] = {}
            for place, spec in app.models if reads_files else ():
                yield from check_files(place, spec, hashes_files=hashes_files)
                sizes[spec.key] = weight_bytes(spec, args.device) or 0
            yield from _budget(app, args.budget_bytes, sizes)


def _ingress(app: App, args: EndpointArgs, message_bytes: int | None) -> Iterator[Problem]:
    if message_bytes is not None and message_bytes < args.max_body_bytes:
        rule = (
            f"a body of that size would not get from the ingress to a pool: messages end at {message_bytes} bytes; "
            f"set RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH above {args.max_body_bytes} in every Ray process"
        )
        yield Problem((*app.place, "args", "max_body_bytes"), rule)
    if "Ingress" in app.deployments:
        yield from _ongoing(*app.deployments["Ingress"], at_least=_FEW_REQUESTS, unit="requests")
        yield from _bulkhead(*app.deployments["Ingress"], app.user_config("Ingress").get("bulkhead"))


def _pool(app: App, args: PoolArgs) -> Iterator[Problem]:
    place, data = app.deployments["Pool"]
    yield from _ongoing(place, data, at_least=_CALLS_A_MODEL * max(len(app.models), 1), unit="calls")
    router = data.get("request_router_config")
    given = router.get("request_router_class") if isinstance(router, dict) else None
    if given != ROUTER:
        rule = f"every replica would load every model; write `request_router_class: {ROUTER}`"
        where = (*place, "request_router_config", "request_router_class")
        yield Problem(where, rule, ABSENT if given is None else given, nearest(given or "", [ROUTER]), is_warning=True)
    options = data.get("ray_actor_options")
    n_gpus = options.get("num_gpus") if isinstance(options, dict) else None
    if args.device != "cpu" and not n_gpus:
        rule = f"device {args.device} needs a GPU, and Ray hides them from a replica that reserves none"
        yield Problem((*place, "ray_actor_options", "num_gpus"), rule)
    elif args.device == "cpu" and n_gpus:
        rule = "a GPU is reserved that `args.device: cpu` leaves idle"
        yield Problem((*place, "ray_actor_options", "num_gpus"), rule, n_gpus, is_warning=True)


def _ongoing(place: Place, data: Mapping[str, object], *, at_least: int, unit: str) -> Iterator[Problem]:
    where = (*place, "max_ongoing_requests")
    limit = data.get("max_ongoing_requests", ABSENT)
    if limit is ABSENT:
        yield Problem(where, f"missing: Serve's default of 5 {unit} at once is too low; write {at_least} or more")
    elif isinstance(limit, int) and limit < at_least:
        yield Problem(where, f"{at_least} {unit} or more may come at once; the rest would wait", limit, is_warning=True)


def _bulkhead(place: Place, data: Mapping[str, object], settings: object) -> Iterator[Problem]:
    limit = data.get("max_ongoing_requests")
    given = settings.get("max_requests") if isinstance(settings, dict) else None
    if isinstance(limit, int) and isinstance(given, int) and given >= limit:
        rule = f"one model could take the whole ingress, which holds {limit} requests; write less"
        yield Problem((*place, "user_config", "bulkhead", "max_requests"), rule, given, is_warning=True)


def _budget(app: App, budget: int, sizes: Mapping[str, int]) -> Iterator[Problem]:
    pinned = sum(sizes.get(spec.key, 0) for _, spec in app.models if spec.pinned)
    if pinned > budget:
        rule = f"the pinned models of this pool take {_mib(pinned)}, its budget is {_mib(budget)}"
        yield Problem((*app.place, "args", "budget_bytes"), rule)
        return
    for place, spec in app.models:
        yield from _fits(place, spec, sizes.get(spec.key, 0), pinned, budget)


def _fits(place: Place, spec: ModelSpec, size: int, pinned: int, budget: int) -> Iterator[Problem]:
    if spec.pinned:
        if pinned + size > budget:
            rule = (
                f"a changed version ({_mib(size)}) would not fit beside the pinned models ({_mib(pinned)} of "
                f"{_mib(budget)}), so a change of this model waits for ever; raise budget_bytes"
            )
            yield Problem(place, rule, is_warning=True)
    elif size > budget - pinned:
        beside = f" beside the pinned models ({_mib(pinned)})" if pinned else ""
        yield Problem(place, f"its weights ({_mib(size)}) do not fit into budget_bytes ({_mib(budget)}){beside}")


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"
