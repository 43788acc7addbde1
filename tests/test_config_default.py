"""The default `serve_config.yaml`: valid, fits two cores, its weights exist, and it shows what pools are for."""

import yaml
from config_files import DEFAULT, default

from deployments.engines import check_options, missing_bases
from deployments.spec import ModelSpec, PoolArgs, PoolConfig
from serve_app.validation import Scope, check
from serve_app.validation.weights import weight_bytes


def pool(name: str) -> tuple[PoolArgs, PoolConfig]:
    """Return what the default file says of a pool."""
    [app] = [app for app in default()["applications"] if app["name"] == name]
    [deployment] = [deployment for deployment in app["deployments"] if deployment["name"] == "Pool"]
    return PoolArgs.model_validate(app["args"]), PoolConfig.model_validate(deployment["user_config"])


def test_it_is_valid_with_all_digests_and_nothing_to_warn_of() -> None:
    report = check(DEFAULT, Scope(hashes_files=True))
    assert report.errors == report.warnings == ()


def test_everything_and_one_more_replica_of_any_kind_fits_two_cpus() -> None:
    deployments = [deployment for app in default()["applications"] for deployment in app["deployments"]]
    cpus = [d["ray_actor_options"]["num_cpus"] * d["num_replicas"] for d in deployments]
    assert sum(cpus) + max(d["ray_actor_options"]["num_cpus"] for d in deployments) <= 2


def test_the_dedicated_pool_keeps_one_pinned_model_and_has_room_to_change_it() -> None:
    args, config = pool("embeddings")
    [model] = config.models
    assert model.key == "minilm:1"
    assert model.pinned
    assert 2 * (weight_bytes(model) or 0) <= args.budget_bytes


def test_the_shared_pool_holds_any_of_its_models_but_not_all_of_them() -> None:
    args, config = pool("shared")
    sizes = [weight_bytes(model) or 0 for model in config.models]
    assert 0 < max(sizes) <= args.budget_bytes < sum(sizes)
    assert len({model.task for model in config.models}) >= 3


def test_every_model_file_is_pinned_by_its_digest() -> None:
    models = [*pool("embeddings")[1].models, *pool("shared")[1].models]
    assert all(model.source.package and model.source.sha256 for model in models)


def test_the_chat_example_is_valid_and_has_room_for_its_model_and_cache() -> None:
    example = DEFAULT.parent / "examples" / "chat" / "serve_config.yaml"
    report = check(example, Scope(hashes_files=True))
    assert report.errors == report.warnings == ()


def test_the_models_shown_in_comments_are_valid_entries() -> None:
    lines = DEFAULT.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.strip() == "# - name: assistant")
    shown = yaml.safe_load("\n".join(line.replace("# ", "", 1) for line in lines[begin:]))
    models = [ModelSpec.model_validate(entry) for entry in shown]
    assert [check_options(model) for model in models]
    assert missing_bases(models) == {}
