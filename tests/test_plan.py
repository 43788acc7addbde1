"""`model-endpoint plan`: what fits where, and what a change restarts, by Serve's own rules where they can be asked."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from config_files import CASSETTE, GONE, INGRESS, MINILM, POOL, SHARED, Change, changed, default, write
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve.schema import ServeApplicationSchema
from test_residency import Loader, spec

from deployments.residency import Residency
from serve_app.cli import main
from serve_app.plan import plan
from serve_app.plan.eviction import evictions

ARGS = ("applications", 2, "args")


def lines(*changes: Change) -> list[str]:
    """Return the plan of changing the default config; nothing that is left alone."""
    found = list(plan(changed(*changes), default()))
    return [line for line in found[found.index("") + 1 :] if not line.endswith(": left alone")]


def test_nothing_changed_leaves_everything_alone() -> None:
    assert lines() == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ((*ARGS[:2], "args", "budget_bytes"), "shared: all replicas restart, of Catalog, Pool: args changed"),
        ((*SHARED, "request_router_config", "request_routing_stats_period_s"), "shared: all replicas restart"),
        ((*SHARED, "ray_actor_options", "num_cpus"), "shared/Pool: its replicas restart: ray_actor_options changed"),
        ((*SHARED, "num_replicas"), "shared/Pool: no replica restarts for num_replicas 1 → 2"),
        ((*SHARED, "max_ongoing_requests"), "shared/Pool: reconfigured without a restart: max_ongoing_requests"),
        ((*SHARED, "user_config", "drain_s"), "shared/Pool: takes over drain_s without a restart"),
        ((*CASSETTE, "timeout_s"), "shared/Pool: model cassette:1: takes over its limits without a load"),
        ((*CASSETTE, "max_tokens"), "shared/Pool: model cassette:1: loaded anew beside the old one"),
        (("http_options", "port"), "Serve itself must be restarted: http_options"),
    ],
    ids=lambda value: ".".join(map(str, value[-2:])) if isinstance(value, tuple) else "",
)
def test_a_change_is_told_with_what_it_costs(change: tuple[str | int, ...], line: str) -> None:
    found = lines((change, 2))
    assert len(found) == 1
    assert found[0].startswith(line)


def test_models_and_aliases_have_lines_of_their_own() -> None:
    models = (*SHARED, "user_config", "models")
    added = {"name": "new", "task": "fill-mask", "source": {"path": "/m"}}
    found = lines(
        ((*models, 4), added), ((*models, 0), GONE), ((*INGRESS, "user_config", "aliases"), {"prod": "minilm"})
    )
    assert found == [
        "endpoint/Ingress: alias minilm:prod: removed",
        "endpoint/Ingress: alias prod: stands for minilm at once",
        "shared/Pool: model new:1: added, loaded by its first request",
        "shared/Pool: model cassette:1: removed, answers for 30 s more",
    ]
    moved = lines(((*INGRESS, "user_config", "aliases", "minilm:prod"), "minilm:2"))
    assert moved == ["endpoint/Ingress: alias minilm:prod: minilm:1 → minilm:2, once that is warm"]


def test_applications_come_and_go() -> None:
    new = default()
    new["applications"][2]["name"] = "other"
    found = list(plan(new, default()))
    assert found[-2:] == ["other: started anew", "shared: removed, its replicas stop"]


SCALING = {"min_replicas": 1, "max_replicas": 2}
MAYBE_CODE: list[Change] = [
    (("applications", 1, "args", "threads"), 2),
    ((*POOL, "autoscaling_config"), SCALING),
    ((*POOL, "request_router_config", "initial_backoff_s"), 0.1),
    ((*POOL, "num_replicas"), 3),
    ((*POOL, "max_queued_requests"), 3),
    ((*POOL, "graceful_shutdown_timeout_s"), 3),
    ((*POOL, "user_config", "drain_s"), 3),
    ((*MINILM, "pinned"), False),
    (("applications", 1, "runtime_env"), {"env_vars": {"A": "1"}}),
]


@pytest.mark.parametrize("change", MAYBE_CODE, ids=lambda change: str(change[0][-1]))
def test_an_application_restarts_exactly_when_serve_says_its_code_changed(change: Change) -> None:
    def version(config: dict[str, Any]) -> str:
        app = dict(config["applications"][1])
        if "autoscaling_config" in str(change):
            app["deployments"] = [{k: v for k, v in d.items() if k != "num_replicas"} for d in app["deployments"]]
        return str(get_app_code_version(ServeApplicationSchema.model_validate(app)))

    restarts = any("all replicas restart" in line for line in lines(change))
    assert restarts == (version(default()) != version(changed(change)))


def test_the_command_prints_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, default())
    assert main(["plan", str(path), "--from", str(path)]) == 0
    out = capsys.readouterr().out
    assert "pool embeddings: 1 replica, each with 256.0 MiB of cpu and no host RAM" in out
    assert "minilm:1    86.6 MiB  pinned" in out
    assert "all of it stays in memory: 86.6 MiB of 256.0 MiB" in out
    assert (
        "2 to 3 of 4 models on demand fit at once: 150.0 MiB for 191.8 MiB" in out or "of 4 models on demand fit" in out
    )
    assert "shared/Pool: left alone" in out


def test_the_plan_names_who_gives_way_to_whom() -> None:
    found = [line.strip() for line in plan(default(), None)]
    assert "who gives way first, used alike: sre-minilm:1, rerank-minilm:1, cassette:1, voice-activity:1" in found
    assert "asked for in turn: rerank-minilm:1 evicts sre-minilm:1" in found
    assert "cassette:1 leaves by itself when it is idle for 3600 s" in found
    pinned = [line.strip() for line in plan(changed(((*CASSETTE, "pinned"), True)), None)]
    assert (
        "who gives way first, used alike: sre-minilm:1, rerank-minilm:1, voice-activity:1; never: cassette:1" in pinned
    )
    roomy = list(plan(changed(((*ARGS, "budget_bytes"), "1GiB")), None))
    assert not any("evicts" in line or "gives way" in line for line in roomy)


def test_a_plan_for_many_models_stays_short_and_counts_the_rest() -> None:
    specs = [spec(f"m{i}", idle_unload_s=None) for i in range(100)]
    found = list(evictions(specs, dict.fromkeys([one.key for one in specs], 10), 200))
    assert len(found) < 12
    assert found[0].endswith("and 92 more")
    assert found[-1] == "  and 72 more of them evict others"


def test_a_size_that_only_a_load_tells_is_not_passed_off_as_nothing() -> None:
    found = list(plan(changed(((*MINILM, "source"), {"url": "s3://models/minilm"})), None))
    assert "  of unknown size until it is loaded, so not counted here: minilm:1" in found


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.sets(st.integers(0, 7)))
def test_pools_evict_as_the_plan_says(sizes: list[int], pinned: set[int]) -> None:
    budget = 100
    specs = [spec(f"m{i}", pinned=i in pinned and sum(sizes[: i + 1]) < 40) for i in range(len(sizes))]
    told = list(evictions(specs, {s.key: n for s, n in zip(specs, sizes, strict=True)}, budget))

    async def main() -> list[str]:
        loader = Loader()
        loader.sizes = {s.name: n for s, n in zip(specs, sizes, strict=True)}
        loader.can_park = False
        loader.load_s = dict.fromkeys(loader.sizes, 0.5)
        residency = Residency(budget, loader, clock=asyncio.get_running_loop().time)
        happened = []
        for one in sorted(specs, key=lambda s: not s.pinned):
            before = len(loader.unloaded)
            async with residency.lease(one):
                pass
            if gone := loader.unloaded[before:]:
                happened.append(f"  asked for in turn: {one.key} evicts {', '.join(f'{name}:1' for name in gone)}")
            await asyncio.sleep(0.5)
        return happened

    assert [line for line in told if "asked for in turn" in line] == virtual_time.run(main)


def test_a_wrong_file_has_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, changed(((*ARGS, "budget_bytes"), "many")))
    assert main(["plan", str(path)]) == 1
    assert "budget_bytes" in capsys.readouterr().err


def test_without_a_running_cluster_there_is_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.local.deployed", lambda: None)
    assert main(["plan", str(write(tmp_path, default()))]) == 0
    assert "nothing runs that this would change" in capsys.readouterr().out
