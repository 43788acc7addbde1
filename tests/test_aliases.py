"""Aliases: a name moves only to what answers as well, at once when it can, and back as fast."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import ModelNotFound, PoolUnavailable
from deployments.types import ModelState, ModelStatus, PoolStatus, Signature, Task
from serve_app.aliases import Aliases, Rank
from serve_app.config import EndpointConfig, PoolRef
from serve_app.registry import Registry
from serve_app.standing import Record, Standing
from serve_app.traffic_config import Alias


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


def test_a_cold_name_moves_only_when_its_target_has_shown_that_it_loads() -> None:
    endpoint = Endpoint({"prod": "bert:1"}, v1=COLD, v2=COLD)
    endpoint.configure({"prod": "bert:2"})
    assert endpoint.stands_for("prod") == "1"
    assert endpoint.warming() == ["bert:2"]
    endpoint.report(v1=COLD, v2=BROKEN)
    assert endpoint.stands_for("prod") == "1"
    assert "bert:2 is UNAVAILABLE" in endpoint.registry.readiness().waiting["alias prod"]
    endpoint.report(v1=COLD, v2=READY)
    assert endpoint.stands_for("prod") == "2"


def test_a_name_whose_model_cannot_answer_moves_to_one_that_has_to_load() -> None:
    endpoint = Endpoint({"prod": "bert:1"}, v1=BROKEN, v2=COLD)
    endpoint.configure({"prod": "bert:2"})
    assert endpoint.stands_for("prod") == "2"


def test_a_name_that_was_warm_where_it_is_does_not_go_back_when_an_operator_unloads_it() -> None:
    endpoint = Endpoint({"prod": "bert:1"}, v1=READY, v2=READY)
    endpoint.configure({"prod": "bert:2"})
    endpoint.report(v1=READY, v2=BROKEN)
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


def fresh(aliases: Mapping[str, str], names: Standing | None = None) -> Endpoint:
    """Return an ingress replica that has just started, and has heard of no pool."""
    endpoint = Endpoint.__new__(Endpoint)
    endpoint.registry = Registry()
    if names is not None:
        endpoint.registry.remember(names)
    endpoint.configure(aliases)
    return endpoint


@pytest.mark.parametrize("name", ["prod", "bert:prod", "bert"])
def test_a_fresh_replica_stands_where_the_others_do_until_the_target_is_warm(name: str) -> None:
    aliases = {} if name == "bert" else {name: "bert:2"}
    older = Endpoint({} if name == "bert" else {name: "bert:1"}, v1=READY)
    older.configure(aliases)
    older.report(v1=READY, v2=COLD)
    newer = fresh(aliases, Standing.loads(older.registry.standing().dumps()))
    newer.report(v1=READY, v2=COLD)
    assert (older.stands_for(name), newer.stands_for(name)) == ("1", "1")
    assert newer.warming() == ["bert:2"]
    for endpoint in (older, newer):
        endpoint.report(v1=READY, v2=READY)
    assert (older.stands_for(name), newer.stands_for(name)) == ("2", "2")


def test_a_fresh_replica_keeps_to_a_name_that_has_moved_and_gone_cold() -> None:
    newer = fresh(
        {"prod": "bert:2"}, Standing(aliases={"prod": Alias.model_validate("bert:2")}, newest={"bert": "bert:2"})
    )
    newer.report(v1=READY, v2=COLD)
    assert (newer.stands_for("prod"), newer.stands_for("bert")) == ("2", "2")


def test_without_a_record_a_name_without_version_means_the_newest_warm_one() -> None:
    newer = fresh({})
    newer.report(v1=READY, v2=READY, v3=COLD)
    assert newer.stands_for("bert") == "2"
    assert newer.warming() == ["bert:3"]


def test_a_remembered_target_that_is_no_more_is_left() -> None:
    newer = fresh({"prod": "bert:2"}, Standing(aliases={"prod": Alias.model_validate("bert:1")}, newest={}))
    newer.report(v2=COLD)
    assert newer.stands_for("prod") == "2"


def test_names_do_not_move_before_the_pools_have_been_heard() -> None:
    newer = fresh({"prod": "bert:2"}, Standing(aliases={"prod": Alias.model_validate("bert:1")}, newest={}))
    config = EndpointConfig.model_validate({"aliases": {"prod": "bert:2"}})
    newer.registry.configure({"p": PoolRef(), "q": PoolRef()}, {}, config.aliases)
    other = ModelStatus("bert", "1", Task.FILL_MASK, Signature((), ()), READY, False, 30.0, n_ready=1)
    newer.report(v2=COLD)  # where bert:1 is has not been said yet
    with pytest.raises(PoolUnavailable):
        newer.stands_for("prod")
    newer.registry.update("q", PoolStatus((other,), {}, 1))
    assert newer.stands_for("prod") == "1"


def test_a_silent_pool_does_not_hold_a_name_back_for_ever() -> None:
    newer = fresh({"prod": "bert:2"}, Standing(aliases={"prod": Alias.model_validate("gone:1")}, newest={}))
    config = EndpointConfig.model_validate({"aliases": {"prod": "bert:2"}})
    newer.registry.configure({"p": PoolRef(), "silent": PoolRef()}, {}, config.aliases)
    newer.report(v2=COLD)
    assert newer.warming() == ["bert:2"]
    newer.report(v2=READY)
    assert newer.stands_for("prod") == "2"


def test_what_an_unheard_pools_names_stood_for_is_not_forgotten() -> None:
    newer = fresh({}, Standing(aliases={}, newest={"bert": "bert:1", "far": "far:1"}))
    newer.registry.configure({"p": PoolRef(), "q": PoolRef()}, {}, {})
    newer.report(v1=READY)
    assert newer.registry.standing().newest == {"bert": "bert:1", "far": "far:1"}
    newer.registry.update("q", PoolStatus((), {}, 1))
    assert newer.registry.standing().newest == {"bert": "bert:1"}


@pytest.mark.parametrize("saved", [b"", b"{", b"[]", b'{"aliases": {"a": 3}}', b'{"newest": 1}'])
def test_a_record_that_cannot_be_read_is_none(saved: bytes) -> None:
    assert Standing.loads(saved) == Standing()


class Kept:
    """The cluster's store: what all ingress replicas read and write."""

    def __init__(self) -> None:
        self.saved, self.n_saves, self.fails = b"", 0, False

    def load(self) -> bytes:
        return self.saved

    def save(self, saved: bytes) -> None:
        if self.fails:
            raise RuntimeError("the store is away")
        self.saved, self.n_saves = saved, self.n_saves + 1


async def test_the_record_is_written_when_a_name_moves_and_read_by_who_starts_then() -> None:
    kept = Kept()
    older = Endpoint({"prod": "bert:1"}, v1=READY)
    record = Record(older.registry, kept)
    await record.keep()
    await record.keep()
    assert kept.n_saves == 1
    older.configure({"prod": "bert:2"})
    older.report(v1=READY, v2=COLD)
    await record.keep()
    newer = fresh({})
    await Record(newer.registry, kept).recall()
    newer.configure({"prod": "bert:2"})
    newer.report(v1=READY, v2=COLD)
    assert newer.stands_for("prod") == "1"
    kept.fails = True
    older.report(v1=READY, v2=READY)
    await record.keep()
    kept.fails = False
    await record.keep()
    assert Standing.loads(kept.saved).newest == {"bert": "bert:2"}


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["1", "2", "3"]),
        st.fixed_dictionaries({v: st.sampled_from(list(Rank)) for v in ("1", "2", "3")}),
    ),
    max_size=20,
)


@given(STEPS)
def test_a_name_moves_only_to_what_is_warm_or_away_from_what_cannot_answer(steps: list[str | dict[str, Rank]]) -> None:
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
        if after != before:
            assert ranks[after] is Rank.WARM or (ranks[before] is Rank.NOT and ranks[after] is Rank.COLD)
