"""Aliases: a name moves only to what answers as well, at once when it can, and back as fast."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import ModelNotFound
from deployments.types import ModelState, ModelStatus, PoolStatus, Signature, Task
from serve_app.aliases import Aliases, Rank
from serve_app.config import EndpointConfig, PoolRef
from serve_app.registry import Registry


class Endpoint:
    """A registry over one pool whose models change state."""

    def __init__(self, aliases: Mapping[str, str], **versions: ModelState) -> None:
        self.registry = Registry()
        self.configure(aliases)
        self.report(**versions)

    def configure(self, aliases: Mapping[str, str]) -> None:
        config = EndpointConfig.model_validate({"aliases": aliases})
        self.registry.configure({"p": PoolRef()}, {}, config.aliases)

    def report(self, **versions: ModelState) -> None:
        """Take the pool's word: `v1=READY`; `old1=READY` is on its way out."""
        models = tuple(
            ModelStatus(
                "bert", version[-1], Task.FILL_MASK, Signature((), ()), state, False, 30.0,
                n_ready=2, is_leaving=version.startswith("old"),
            )
            for version, state in versions.items()
        )  # fmt: skip
        self.registry.update("p", PoolStatus(models, {}, 3))

    def stands_for(self, name: str, version: str | None = None) -> str:
        return self.registry.resolve(name, version).version

    def warming(self) -> list[str]:
        return [target.key for target, _ in self.registry.moving()]


READY, COLD, LOADING, BROKEN = ModelState.READY, ModelState.UNLOADED, ModelState.LOADING, ModelState.UNAVAILABLE


@pytest.mark.parametrize("name", ["prod", "bert:prod", "bert"])
def test_an_alias_moves_only_when_its_target_is_warm(name: str) -> None:
    endpoint = Endpoint({name: "bert:1"}, v1=READY, v2=COLD)
    endpoint.configure({name: "bert:2"})
    assert endpoint.stands_for(name) == "1"
    assert endpoint.warming() == ["bert:2"]
    waiting = endpoint.registry.readiness()
    assert waiting.is_ready
    assert "is going to stand for bert:2: bert:2 is UNLOADED" in waiting.waiting[f"alias {name}"]
    endpoint.report(v1=READY, v2=LOADING)
    assert endpoint.stands_for(name) == "1"
    endpoint.report(v1=READY, v2=READY)
    assert endpoint.stands_for(name) == "2"
    assert endpoint.warming() == []
    assert endpoint.registry.readiness().aliases == {name: "bert:2"}


def test_rollback_is_at_once_while_the_old_version_is_in_memory() -> None:
    endpoint = Endpoint({"prod": "bert:2"}, v1=READY, v2=READY)
    endpoint.configure({"prod": "bert:1"})
    assert endpoint.stands_for("prod") == "1"


def test_a_target_that_cannot_load_leaves_the_name_where_it_is_and_says_so() -> None:
    endpoint = Endpoint({"prod": "bert:1"}, v1=READY, v2=BROKEN)
    for target in ("bert:2", "bert:9"):
        endpoint.configure({"prod": target})
        assert endpoint.stands_for("prod") == "1"
        assert f"going to stand for {target}" in endpoint.registry.readiness().waiting["alias prod"]
        assert endpoint.warming() == []


def test_a_cold_name_moves_at_once_there_is_no_warmth_to_lose() -> None:
    endpoint = Endpoint({"prod": "bert:1"}, v1=COLD, v2=COLD)
    endpoint.configure({"prod": "bert:2"})
    assert endpoint.stands_for("prod") == "2"


def test_a_name_leaves_a_version_that_is_gone() -> None:
    endpoint = Endpoint({"prod": "bert:1"}, v1=READY, v2=COLD)
    endpoint.configure({"prod": "bert:2"})
    endpoint.report(v2=COLD)
    assert endpoint.stands_for("prod") == "2"


@pytest.mark.parametrize("aliases", [{}, {"prod": "bert:2"}])
def test_a_version_that_is_replaced_answers_until_the_new_one_is_warm(aliases: dict[str, str]) -> None:
    name = next(iter(aliases), "bert")
    endpoint = Endpoint({name: "bert:1"} if aliases else {}, v1=READY)
    endpoint.configure(aliases)
    endpoint.report(old1=READY, v2=COLD)
    assert endpoint.stands_for(name) == "1"
    assert endpoint.stands_for("bert", "1") == "1"
    assert endpoint.registry.versions("bert") == ("2",)
    assert [model.key for model in endpoint.registry.all()] == ["bert:2"]
    assert set(endpoint.warming()) == {"bert:2"}
    endpoint.report(old1=READY, v2=READY)
    assert endpoint.stands_for(name) == "2"
    endpoint.report(v2=READY)
    with pytest.raises(ModelNotFound):
        endpoint.stands_for("bert", "1")


def test_a_new_version_becomes_the_default_when_it_is_warm() -> None:
    endpoint = Endpoint({}, v1=READY)
    endpoint.report(v1=READY, v2=COLD)
    assert endpoint.stands_for("bert") == "1"
    assert endpoint.warming() == ["bert:2"]
    assert [n for _, n in endpoint.registry.moving()] == [2]
    endpoint.report(v1=READY, v2=READY)
    assert endpoint.stands_for("bert") == "2"


def test_an_alias_never_hides_a_real_version_and_an_unknown_target_is_404() -> None:
    endpoint = Endpoint({"bert:1": "bert:2", "lost": "nobody:1"}, v1=READY, v2=READY)
    assert endpoint.stands_for("bert", "1") == "1"
    with pytest.raises(ModelNotFound, match="nobody"):
        endpoint.registry.resolve("lost")


def test_a_refused_configuration_leaves_aliases_as_they_are() -> None:
    endpoint = Endpoint({"prod": "bert:1"}, v1=READY)
    endpoint.registry.configure({"p": PoolRef()}, {"endpoint/user_config": "wrong"})
    assert endpoint.stands_for("prod") == "1"


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["1", "2", "3"]),
        st.fixed_dictionaries({v: st.sampled_from(list(Rank)) for v in ("1", "2", "3")}),
    ),
    max_size=20,
)


@given(STEPS)
def test_no_step_of_a_name_is_to_a_worse_target(steps: list[str | dict[str, Rank]]) -> None:
    aliases: Aliases[str] = Aliases(lambda target: (target,))
    ranks = dict.fromkeys("123", Rank.COLD)
    aliases.configure({"prod": "1"})
    for step in steps:
        before = aliases.get("prod")
        assert before is not None
        if isinstance(step, str):
            aliases.configure({"prod": step})
        else:
            ranks = step
        aliases.settle(ranks.__getitem__)
        after = aliases.get("prod")
        assert after is not None
        assert after == before or ranks[after] >= ranks[before]
