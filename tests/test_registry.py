"""Registry: which model a name means, and what is said of those that are not there."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import ModelNotFound, ModelUnavailable, PoolUnavailable
from deployments.types import ModelState, ModelStatus, PoolStatus, Signature, Task
from deployments.versions import natural
from serve_app.config import PoolRef
from serve_app.registry import Registry


def model(name: str, version: str = "1", state: ModelState = ModelState.READY, *, pinned: bool = False) -> ModelStatus:
    return ModelStatus(name, version, Task.FILL_MASK, Signature((), ()), state, pinned, 30.0)


def pool(*models: ModelStatus, n_replicas: int = 1, **rejected: str) -> PoolStatus:
    return PoolStatus(models, {k.replace("_", ":"): v for k, v in rejected.items()}, n_replicas)


def registry(**pools: PoolStatus | None) -> Registry:
    result = Registry()
    result.configure({name: PoolRef() for name in pools}, {})
    for name, status in pools.items():
        if status is not None:
            result.update(name, status)
    return result


def test_the_newest_servable_version_is_the_default() -> None:
    versions = [model("a", v) for v in ("9", "10")] + [model("a", "11", ModelState.LOADING, pinned=True)]
    models = registry(p=pool(*versions))
    assert models.resolve("a").version == "10"
    assert models.resolve("a", "9").version == "9"
    assert models.resolve("a:9").version == "9"
    assert models.versions("a") == ("9", "10", "11")


def test_a_cold_model_counts_as_servable() -> None:
    cold = ModelState.UNLOADED
    assert registry(p=pool(model("a", "1", cold), model("a", "2", cold))).resolve("a").version == "2"


def test_without_a_servable_version_the_newest_is_meant() -> None:
    assert registry(p=pool(model("a", "1", ModelState.UNAVAILABLE))).resolve("a").version == "1"


def test_unknown_names_and_versions_say_what_there_is() -> None:
    models = registry(p=pool(model("a"), model("b")))
    with pytest.raises(ModelNotFound, match="unknown model: 'x' is not found; models: a, b"):
        models.resolve("x")
    with pytest.raises(ModelNotFound, match="'a' has no version '7'; versions: 1"):
        models.resolve("a", "7")


def test_while_a_pool_is_silent_an_unknown_model_is_503_not_404() -> None:
    models = registry(p=pool(model("a")), quiet=None)
    with pytest.raises(PoolUnavailable, match="no answer from pool quiet"):
        models.resolve("x")
    assert models.resolve("a").name == "a"


def test_a_refused_entry_is_503_with_its_reason() -> None:
    models = registry(p=pool(model("a"), b_1="task: wrong"))
    for name, version in (("b", None), ("b", "1"), ("b:1", None)):
        with pytest.raises(ModelUnavailable, match="task: wrong"):
            models.resolve(name, version)


def test_a_pool_that_stops_answering_keeps_its_last_word_but_is_not_ready() -> None:
    models = registry(p=pool(model("a")))
    models.update("p", None, "it did not answer")
    assert models.resolve("a").name == "a"
    assert not models.readiness().is_ready
    assert models.readiness().waiting == {"p": "it did not answer"}
    models.update("p", pool(model("a")))
    assert models.readiness().is_ready


def test_ready_waits_for_pinned_models_of_required_pools_only() -> None:
    loading = model("a", state=ModelState.LOADING, pinned=True)
    cold = model("b", state=ModelState.UNLOADED)
    models = Registry()
    models.configure({"p": PoolRef(), "q": PoolRef(required=False)}, {})
    models.update("p", pool(loading, cold))
    assert models.readiness().waiting == {"a:1": "LOADING"}
    models.update("p", pool(model("a", pinned=True), cold))
    assert models.readiness().is_ready


def test_refused_entries_of_pools_and_endpoint_are_listed() -> None:
    models = registry(p=pool(b_1="why"))
    models.configure({"p": PoolRef()}, {"endpoint/user_config": "what"})
    assert models.readiness().rejected == {"p/b:1": "why", "endpoint/user_config": "what"}


def test_targets_know_their_pool_and_replicas() -> None:
    models = registry(p=pool(model("a", pinned=True), n_replicas=3), q=pool(model("b")))
    a, b = (models.target(models.resolve(n)) for n in "ab")
    assert (a.pool, a.key, a.n_replicas, a.is_everywhere) == ("p", "a:1", 3, True)
    assert (b.pool, b.is_everywhere) == ("q", False)


def test_a_pool_that_leaves_the_configuration_takes_its_models_along() -> None:
    models = registry(p=pool(model("a")), q=pool(model("b")))
    models.configure({"p": PoolRef()}, {})
    assert [m.name for m in models.all()] == ["a"]
    models.update("q", pool(model("b")))
    assert [m.name for m in models.all()] == ["a"]


def test_versions_sort_as_people_count() -> None:
    assert sorted(["10", "2", "v1.10", "v1.9", "1"], key=natural) == ["1", "2", "10", "v1.9", "v1.10"]


@given(st.lists(st.text(max_size=8), max_size=8))
def test_any_versions_can_be_sorted_whatever_their_order(versions: list[str]) -> None:
    keys = [natural(version) for version in versions]
    backwards = keys[::-1]
    assert sorted(keys) == sorted(backwards)


def test_replicas_that_fall_silent_still_count_and_are_known_of() -> None:
    models = registry(pool=None)
    assert not models.has_silent("pool")
    models.update("pool", pool(model("m"), n_replicas=3))
    assert not models.has_silent("pool")
    models.update("pool", replace(pool(model("m"), n_replicas=2), n_silent=1))
    assert models.has_silent("pool")
    assert models.target(models.resolve("m")).n_replicas == 3
    models.update("pool", None, "it did not answer")
    assert models.has_silent("pool")
    assert not models.has_silent("nobody")
