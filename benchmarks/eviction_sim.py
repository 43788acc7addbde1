"""Who should leave: the residency's rule as it is, against LRU, Belady's and the best that knows no future.

    python -m benchmarks.eviction_sim [--models 100] [--room 20] [--requests 4000] [--seeds 4]

Loads for each hundred requests after the first quarter, by pattern of use. "ours" is `deployments.room.first_to_go`
over real slots; Serve's `@serve.multiplexed` is "lru". "popular" keeps those that are in truth most popular, which only
helps where popularity stays; "belady" knows all that is to come.
"""

import argparse
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from deployments.room import Uses, first_to_go
from deployments.slot import Slot
from deployments.spec import ModelSpec

Requests = Sequence[int]


def zipf(chance: np.random.Generator, n_models: int, n: int) -> Requests:
    """Return requests whose models' popularity is Zipf(1.0) and stays."""
    weights = 1 / np.arange(1, n_models + 1)
    return [int(i) for i in chance.choice(n_models, n, p=weights / weights.sum())]


def shifting(chance: np.random.Generator, n_models: int, n: int) -> Requests:
    """Return the same, but every 600 requests all change places."""
    found: list[int] = []
    while len(found) < n:
        places = chance.permutation(n_models)
        found += [int(places[i]) for i in zipf(chance, n_models, 600)]
    return found[:n]


def drifting(chance: np.random.Generator, n_models: int, n: int) -> Requests:
    """Return the same, but every 100 requests two change places."""
    places, found = np.arange(n_models), []
    while len(found) < n:
        one, other = chance.integers(0, n_models, 2)
        places[[one, other]] = places[[other, one]]
        found += [int(places[i]) for i in zipf(chance, n_models, 100)]
    return found[:n]


def bursts(chance: np.random.Generator, n_models: int, n: int) -> Requests:
    """Return Zipf's, and every 200 requests 50 for one that few ask for."""
    found: list[int] = []
    while len(found) < n:
        found += [*zipf(chance, n_models, 200), *[int(chance.integers(n_models // 5, n_models))] * 50]
    return found[:n]


def scans(chance: np.random.Generator, n_models: int, n: int) -> Requests:
    """Return Zipf's, every other one replaced by a job that goes through all models again and again."""
    found = list(zipf(chance, n_models, n))
    found[1::2] = [i % n_models for i in range(len(found[1::2]))]
    return found


def ours(requests: Requests, room: int) -> list[bool]:
    """Return, for each request, whether it loads."""
    spec = ModelSpec.model_validate({"name": "m", "task": "fill-mask", "source": {"path": "/x"}})
    slots: dict[int, Slot[None]] = {}
    uses, here, loads = Uses(slots), dict[int, Slot[None]](), []
    for model in requests:
        slot = slots.setdefault(model, Slot(spec, size_bytes=1, load_s=1.0))
        uses.note(slot)
        loads.append(model not in here)
        if model not in here and len(here) >= room:
            victim = first_to_go(list(here.values()), (), uses)
            here = {key: one for key, one in here.items() if one is not victim}
        here[model] = slot
    return loads


def lru(requests: Requests, room: int) -> list[bool]:
    here: OrderedDict[int, None] = OrderedDict()
    loads = []
    for model in requests:
        loads.append(model not in here)
        if model not in here and len(here) >= room:
            here.popitem(last=False)
        here[model] = None
        here.move_to_end(model)
    return loads


def popular(requests: Requests, room: int) -> list[bool]:
    counts = np.bincount(requests)
    return _by(requests, room, lambda model, _: -counts[model])


def belady(requests: Requests, room: int) -> list[bool]:
    coming: dict[int, list[int]] = {}
    for place in range(len(requests) - 1, -1, -1):
        coming.setdefault(requests[place], []).append(place)

    def next_use(model: int, now: int) -> float:
        places = coming[model]
        while places and places[-1] <= now:
            places.pop()
        return places[-1] if places else np.inf

    return _by(requests, room, next_use)


def _by(requests: Requests, room: int, most: Callable[[int, int], float]) -> list[bool]:
    here: set[int] = set()
    loads = []
    for now, model in enumerate(requests):
        loads.append(model not in here)
        if model not in here and len(here) >= room:
            here.remove(max(here, key=lambda one: most(one, now)))
        here.add(model)
    return loads


POLICIES = {"belady": belady, "popular": popular, "ours": ours, "lru": lru}
PATTERNS = {"zipf": zipf, "shifting": shifting, "drifting": drifting, "bursts": bursts, "scans": scans}


def loads_a_hundred(pattern: str, policy: str, n_models: int, room: int, n: int, seeds: int) -> float:
    """Return the loads for each hundred requests after the first quarter."""
    found = [
        POLICIES[policy](PATTERNS[pattern](np.random.default_rng(seed), n_models, n), room)[n // 4 :]
        for seed in range(seeds)
    ]
    return 100 * float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--room", type=int, default=20)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    for pattern in PATTERNS:
        row = {
            policy: loads_a_hundred(pattern, policy, args.models, args.room, args.requests, args.seeds)
            for policy in POLICIES
        }
        shares = ", ".join(f"{policy} {value:.1f}" for policy, value in row.items())
        print(f"{pattern}: {shares}; ours/lru {row['ours'] / row['lru']:.2f}", flush=True)


if __name__ == "__main__":
    main()
