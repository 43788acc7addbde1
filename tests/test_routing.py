"""Routing: shares by weight, callers that stay, arms that cannot serve."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traffic_cases import model, texts

from deployments.errors import ModelNotFound
from deployments.types import InferRequest, ModelState, ModelStatus
from serve_app.config import EndpointConfig
from serve_app.context import Context
from serve_app.principals import ANONYMOUS, CLUSTER, Principal
from serve_app.routing import Routes, choose
from serve_app.traffic_config import Alias

KEYS = [f"user {n}" for n in range(4000)]
WEIGHTS = st.dictionaries(st.sampled_from("abcde"), st.floats(0.1, 100), min_size=2)


class Names:
    """A registry of `m` in three versions and `other`."""

    def __init__(self, aliases: Mapping[str, Alias]) -> None:
        self.known = {f"m:{version}": model("m", version) for version in "123"} | {"other:1": model("other")}
        self._aliases = aliases

    def alias(self, ref: str) -> Alias | None:
        return self._aliases.get(ref)

    def model(self, ref: str) -> ModelStatus:
        key = {"m": "m:3", "other": "other:1"}.get(ref, ref)
        if key not in self.known:
            raise ModelNotFound(f"unknown model {key!r}")
        return self.known[key]


class Case:
    def __init__(self, **config: object) -> None:
        parsed = EndpointConfig.model_validate(config)
        self.names = Names(parsed.aliases)
        self.routes = Routes(self.names, random.Random(7).random)
        self.routes.configure(parsed)

    def arms(self, name: str = "chat", n: int = 4000, user: str | None = None) -> Counter[str]:
        found: Counter[str] = Counter()
        for number in range(n):
            request = texts("a", user=f"user {number}" if user is None else user)
            context = Context()
            plan = self.routes.plan(replaced(request, name), context)
            found[plan.primary.key] += 1
            assert context.arm in (plan.primary.key, "")
        return found


def replaced(request: InferRequest, name: str) -> InferRequest:
    return replace(request, model=name)


@given(weights=WEIGHTS, salt=st.text(max_size=5))
def test_each_target_gets_its_weights_share(weights: dict[str, float], salt: str) -> None:
    found = Counter(choose(weights, salt, key) for key in KEYS)
    for target, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = (len(KEYS) * share * (1 - share)) ** 0.5
        assert abs(found[target] - len(KEYS) * share) <= 5.5 * deviation + 1


@given(weights=WEIGHTS, factor=st.floats(1, 10), data=st.data())
def test_a_target_that_grows_only_takes_callers(weights: dict[str, float], factor: float, data: st.DataObject) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    after = {**weights, grown: weights[grown] * factor}
    for key in KEYS[:300]:
        old, new = choose(weights, "s", key), choose(after, "s", key)
        assert new in (old, grown)


@given(weights=WEIGHTS, data=st.data())
def test_a_target_that_leaves_moves_its_own_callers_only(weights: dict[str, float], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(weights)))
    left: Mapping[str, float] = {target: weight for target, weight in weights.items() if target != gone}
    for key in KEYS[:300]:
        old = choose(weights, "s", key)
        assert old == gone or choose(left, "s", key) == old


def test_aliases_split_their_callers_independently() -> None:
    halves = {"a": 1.0, "b": 1.0}
    both = Counter((choose(halves, "one", key), choose(halves, "two", key)) for key in KEYS)
    assert min(both.values()) > len(KEYS) / 4 * 0.8


def test_a_canary_gets_its_share_and_a_user_stays() -> None:
    case = Case(aliases={"chat": {"targets": {"m:1": 90, "m:2": 10}, "sticky": "user"}})
    assert case.arms()["m:2"] == pytest.approx(400, abs=90)
    assert len(case.arms(n=50, user="ada")) == 1


def test_without_anything_to_stick_to_each_request_draws_anew() -> None:
    case = Case(aliases={"chat": {"targets": {"m:1": 50, "m:2": 50}, "sticky": "user"}})
    assert case.arms(n=1000, user="")["m:1"] == pytest.approx(500, abs=90)


@pytest.mark.parametrize(
    ("sticky", "context"),
    [
        ("key", Context(principal=Principal("team", "key-1"))),
        ("key", Context(principal=Principal("jwt:ada"))),
        ("header:x-session", Context(metadata={"x-session": "s-1"})),
    ],
)
def test_callers_stick_by_key_or_header(sticky: str, context: Context) -> None:
    case = Case(aliases={"chat": {"targets": {"m:1": 50, "m:2": 50}, "sticky": sticky}})
    found = {case.routes.plan(replaced(texts("a"), "chat"), context).primary.key for _ in range(30)}
    assert len(found) == 1


@pytest.mark.parametrize("principal", [ANONYMOUS, CLUSTER])
def test_callers_without_a_key_are_not_taken_for_one(principal: Principal) -> None:
    case = Case(aliases={"chat": {"targets": {"m:1": 50, "m:2": 50}, "sticky": "key"}})
    plans = [case.routes.plan(replaced(texts("a"), "chat"), Context(principal=principal)) for _ in range(40)]
    assert {plan.primary.key for plan in plans} == {"m:1", "m:2"}


def test_a_weight_of_0_gets_nothing() -> None:
    assert Case(aliases={"chat": {"targets": {"m:1": 1, "m:2": 0}}}).arms(n=200) == {"m:1": 200}


def test_an_arm_that_cannot_serve_gets_nothing_until_it_can() -> None:
    case = Case(aliases={"chat": {"targets": {"m:1": 50, "m:2": 50, "gone:1": 50}}})
    assert set(case.arms(n=200)) == {"m:1", "m:2"}
    case.names.known["m:2"] = model("m", "2", state=ModelState.UNAVAILABLE)
    assert case.arms(n=200) == {"m:1": 200}
    case.names.known["m:1"] = model("m", "1", state=ModelState.UNAVAILABLE)
    assert set(case.arms(n=200)) == {"m:1", "m:2"}  # they say themselves what is wrong


def test_an_alias_of_unknown_models_only_says_so() -> None:
    case = Case(aliases={"chat": {"targets": {"gone:1": 1}}})
    with pytest.raises(ModelNotFound, match="gone:1"):
        case.arms(n=1)


def test_an_alias_of_one_model_has_no_arms() -> None:
    context = Context()
    plan = Case(aliases={"prod": "m:2"}).routes.plan(replaced(texts("a"), "prod"), context)
    assert (plan.asked, plan.primary.key, context.arm, context.headers) == ("prod", "m:2", "", {})


def test_an_alias_may_bear_a_models_own_name() -> None:
    """So that clients of `m` become part of an experiment without knowing; `m:3` stays `m:3`."""
    case = Case(aliases={"m": {"targets": {"m:1": 1}}})
    assert case.arms("m", n=1) == {"m:1": 1}
    plan = case.routes.plan(texts("a", version="3"), Context())
    assert plan.primary.key == "m:3"


def test_shadows_are_drawn_by_their_share() -> None:
    shadows = [{"model": "m:2", "share": 0.25}, {"model": "other"}]
    case = Case(aliases={"chat": {"targets": {"m:1": 1}, "shadows": shadows}})
    found: Counter[str] = Counter()
    for _ in range(2000):
        plan = case.routes.plan(replaced(texts("a"), "chat"), Context())
        found.update(shadow.model for shadow in plan.shadows)
    assert found["other"] == 2000
    assert found["m:2"] == pytest.approx(500, abs=100)


def test_the_most_particular_fallback_counts() -> None:
    chains = {"chat": {"to": ["m:2"]}, "m:1": {"to": ["m:3"]}, "m": {"to": ["other"]}}
    case = Case(aliases={"chat": {"targets": {"m:1": 1}}}, fallbacks=chains)
    found = {}
    for name in ("chat", "m:1", "m:2", "other"):
        plan = case.routes.plan(replaced(texts("a"), name), Context())
        found[name] = plan.fallback.to[0] if plan.fallback else None
    assert found == {"chat": "m:2", "m:1": "m:3", "m:2": "other", "other": None}


@pytest.mark.parametrize(
    "alias",
    [
        {"targets": {}},
        {"targets": {"m:1": 0}},
        {"targets": {"m:1": -1}},
        {"targets": {"m:1": float("nan")}},
        {"targets": {"a b": 1}},
        {"targets": {"m:1": 1}, "sticky": "moon"},
        {"targets": {"m:1": 1}, "shadows": [{"model": "m:2", "share": 2}]},
        {"targets": {"m:1": 1}, "wheights": {}},
    ],
)
def test_a_wrong_alias_is_refused(alias: object) -> None:
    with pytest.raises(ValueError, match="aliases"):
        EndpointConfig.model_validate({"aliases": {"chat": alias}})
