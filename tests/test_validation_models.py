"""`serve_app.validation`: the endpoint, the pools and their models, each and together."""

from pathlib import Path

import pytest
import yaml
from config_files import (
    CASSETTE,
    DEFAULT,
    GONE,
    INGRESS,
    MINILM,
    POOL,
    RERANK,
    SRE,
    Table,
    changed,
    default,
    lines_of,
    places,
)

from serve_app.validation import Scope, check_text

ENDPOINTS = "applications[0].deployments[0]"
MODEL = "applications[2].deployments[1].user_config.models[0]"

OURS: Table = {
    "task": (
        [((*CASSETTE, "task"), "fil-mask")],
        f"{MODEL}.task: input should be 'feature-extraction', 'text-classification', 'token-classification', "
        "'zero-shot-classification', 'fill-mask', 'text-ranking', 'image-classification', 'text-generation', "
        "'text2text-generation', 'tensor' or 'custom' "
        "(value 'fil-mask'); did you mean 'fill-mask'?",
    ),
    "unknown model key": (
        [((*CASSETTE, "timeout"), 5)],
        f"{MODEL}.timeout: unknown key (value 5); did you mean 'timeout_s'?",
    ),
    "nested model key": (
        [((*MINILM, "batch", "max_item"), 5)],
        "applications[1].deployments[1].user_config.models[0].batch.max_item: unknown key (value 5); "
        "did you mean 'max_items'?",
    ),
    "no name": ([((*CASSETTE, "name"), GONE)], f"{MODEL}.name: missing; it has no default"),
    "engine": (
        [((*RERANK, "engine"), "biencoder")],
        "applications[2].deployments[1].user_config.models[2].engine: 'biencoder' is not one of sentence-embedding, "
        "text-classification, zero-shot-classification, token-classification, fill-mask, cross-encoder, bi-encoder, "
        "image-classification, text-generation, lora-adapter, text2text-generation, tensor, custom "
        "(value 'biencoder'); did you mean 'bi-encoder'?",
    ),
    "engine of another task": (
        [((*CASSETTE, "engine"), "bi-encoder")],
        f"{MODEL}.engine: 'bi-encoder' does not do task 'fill-mask'; these do: fill-mask, custom (value 'bi-encoder')",
    ),
    "option name": (
        [((*CASSETTE, "options"), {"topk": 3})],
        f"{MODEL}.options.topk: unknown key (value 3); did you mean 'top_k'?",
    ),
    "option value": (
        [((*CASSETTE, "options"), {"top_k": 0})],
        f"{MODEL}.options.top_k: input should be greater than or equal to 1 (value 0)",
    ),
    "size": (
        [(("applications", 1, "args", "budget_bytes"), "2Gib")],
        "applications[1].args.budget_bytes: '2Gib' is not a size; write bytes, or a number with one of B, KiB, MiB, "
        "GiB, TiB, kB, MB, GB (value '2Gib')",
    ),
    "pool without args": (
        [(("applications", 1, "args"), GONE)],
        "applications[1].args.budget_bytes: missing; it has no default",
    ),
    "endpoint args": (
        [(("applications", 0, "args", "max_body"), 1)],
        "applications[0].args.max_body: unknown key (value 1); did you mean 'max_body_bytes'?",
    ),
    "endpoint user_config": (
        [((*INGRESS, "user_config", "refresh"), 1)],
        f"{ENDPOINTS}.user_config.refresh: unknown key (value 1); did you mean 'refresh_s'?",
    ),
    "pool reference key": (
        [((*INGRESS, "user_config", "pools", "shared"), {"require": True})],
        f"{ENDPOINTS}.user_config.pools.shared.require: unknown key (value true); did you mean 'required'?",
    ),
    "unknown pool": (
        [((*INGRESS, "user_config", "pools", "sharde"), {})],
        f"{ENDPOINTS}.user_config.pools.sharde: no pool application has this name; there are embeddings, shared; "
        "did you mean 'shared'?",
    ),
    "pool not referenced": (
        [((*INGRESS, "user_config", "pools", "shared"), GONE)],
        "applications[2].name: the endpoint does not name this pool, so nobody reaches its models; add it to pools "
        "(value 'shared')",
    ),
    "pool with a route": (
        [(("applications", 1, "route_prefix"), GONE)],
        "applications[1].route_prefix: only the endpoint has a route; write `route_prefix: null` (value '/')",
    ),
    "endpoint without a route": (
        [(("applications", 0, "route_prefix"), None)],
        "applications[0].route_prefix: the endpoint needs a route, or nobody reaches it; write / (value null)",
    ),
    "route without a slash": (
        [(("applications", 0, "route_prefix"), "models")],
        "applications[0].route_prefix: a route begins with / (value 'models')",
    ),
    "no endpoint": (
        [(("applications", 0), GONE)],
        "applications: expected one application with import_path serve_app.app:build, found 0",
    ),
    "import path": (
        [(("applications", 1, "import_path"), "deployments.app:biuld")],
        "applications[1].import_path: is neither serve_app.app:build nor deployments.app:build "
        "(value 'deployments.app:biuld'); did you mean 'deployments.app:build'?",
    ),
    "deployment name": (
        [((*POOL, "name"), "Pools")],
        "applications[1].deployments[1].name: no such deployment in deployments.app:build; there are Catalog, Pool "
        "(value 'Pools'); did you mean 'Pool'?",
    ),
    "deployment twice": (
        [(("applications", 1, "deployments", 0, "name"), "Pool")],
        "applications[1].deployments[1].name: this deployment is listed twice (value 'Pool')",
    ),
    "deployment not listed": (
        [(POOL, GONE)],
        "applications[1].deployments: deployment Pool is not listed, so nothing is configured",
    ),
    "catalog takes no config": (
        [(("applications", 1, "deployments", 0, "user_config"), {"models": []})],
        "applications[1].deployments[0].user_config: Catalog takes none",
    ),
    "model in two pools": (
        [((*CASSETTE, "name"), "minilm")],
        f"{MODEL}.name: minilm:1 is in pool embeddings already; give it another version (value 'minilm')",
    ),
    "model twice in a pool": (
        [((*SRE, "name"), "cassette")],
        "applications[2].deployments[1].user_config.models: model 'cassette:1' is listed twice",
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_a_fault_in_our_part_gets_its_line(name: str, tmp_path: Path) -> None:
    changes, expected = OURS[name]
    lines = lines_of(tmp_path, changed(*changes))
    assert any(line == expected or (line.startswith(expected) and expected[-1] == " ") for line in lines), lines


@pytest.mark.timeout(300)
def test_no_value_anywhere_makes_it_raise() -> None:
    values = (None, [], {}, "x", -1, [{}], {"a": {}})
    for index, place in enumerate(places(default())):
        value = values[index % len(values)]
        check_text(yaml.safe_dump(changed((place, value))), "f", Scope(reads_files=False))
    assert check_text(DEFAULT.read_text(), "f").errors == ()


def test_a_moderation_map_is_checked(tmp_path: Path) -> None:
    wrong = {"labels": {"toxic": "rude"}}
    [line] = [*lines_of(tmp_path, changed(((*MINILM, "moderation"), wrong)))][:1]
    assert "moderation" in line
