"""Which versions are offered by which policy."""

import asyncio
from typing import Any

import pytest
from test_models import Case, entry, settle

from deployments.errors import ModelUnavailable
from deployments.orders import UNLOAD
from deployments.spec import PoolConfig
from deployments.types import ModelState


@pytest.mark.parametrize(
    ("policy", "offered"),
    [
        ("all", ["9", "10", "v2"]),
        ({"latest": 1}, ["v2"]),
        ({"latest": 2}, ["10", "v2"]),
        ({"latest": 9}, ["9", "10", "v2"]),
        (["9"], ["9"]),
        (["9", "v2", "nope"], ["9", "v2"]),
        ([], []),
    ],
)
async def test_a_policy_says_which_versions_are_offered(policy: Any, offered: list[str]) -> None:
    case = Case()
    case.apply(*(entry("a", version=v) for v in ("10", "9", "v2")), entry("b"), versions={"a": policy})
    assert [s.version for s in case.table.statuses() if s.name == "a"] == [v for v in ("10", "9", "v2") if v in offered]
    assert "b:1" in case.states()
    assert case.table.rejected == {}


async def test_a_new_version_pushes_the_oldest_out_which_drains() -> None:
    case = Case()
    case.apply(entry("a", version="1"), versions={"a": {"latest": 1}}, drain_s=0.0)
    await case.use("a:1")
    case.apply(entry("a", version="1"), entry("a", version="2"), versions={"a": {"latest": 1}}, drain_s=0.0)
    assert [s.is_leaving for s in case.table.statuses()] == [True, False]
    assert await case.use("a:1") == "/v1"
    await settle()
    assert case.states() == {"a:2": ModelState.UNLOADED}


@pytest.mark.parametrize("wrong", [{"a": {"latest": 0}}, {"a": {"newest": 1}}, {"a": "some"}])
async def test_a_wrong_policy_is_refused_and_the_one_before_stays(wrong: Any) -> None:
    case = Case()
    case.apply(entry("a", version="1"), entry("a", version="2"), versions={"a": {"latest": 1}})
    case.apply(entry("a", version="1"), entry("a", version="2"), versions=wrong)
    assert set(case.states()) == {"a:2"}
    assert "versions" in case.table.rejected["user_config"]
    with pytest.raises(ValueError, match="versions"):
        PoolConfig.model_validate({"versions": wrong})


def adapter(**fields: Any) -> dict[str, Any]:
    return entry("polite", task="text-generation", base="llm:1", **fields)


async def test_a_version_that_an_adapter_rests_on_is_offered_with_it() -> None:
    case = Case()
    llms = [entry("llm", version=v, task="text-generation") for v in "12"]
    case.apply(*llms, adapter(), versions={"llm": {"latest": 1}})
    assert sorted(case.states()) == ["llm:1", "llm:2", "polite:1"]


async def test_a_base_stays_until_its_adapters_go() -> None:
    case = Case()
    case.apply(entry("llm", task="text-generation"), adapter(), drain_s=0.0)
    assert await case.use("polite:1") == "/v1"
    assert case.loader.loads == ["llm:1 /v1", "polite:1 /v1"]
    case.apply(adapter(), drain_s=0.0)  # refused: its base is not listed; the one before stays, and needs it
    assert "base: 'llm:1' is not a model of this pool" in case.table.rejected["polite:1"]
    await asyncio.sleep(0.01)
    assert await case.use("polite:1") == "/v1"
    case.apply(drain_s=0.0)
    await asyncio.sleep(0.01)
    assert case.states() == {}
    assert case.loader.unloads == ["polite:1 /v1", "llm:1 /v1"]


async def test_an_adapter_whose_base_an_operator_unloaded_says_so() -> None:
    case = Case()
    case.apply(entry("llm", task="text-generation"), adapter())
    await case.use("polite:1")
    case.table.obey({"llm:1": UNLOAD})
    await settle()
    assert case.loader.unloads == ["polite:1 /v1", "llm:1 /v1"]
    with pytest.raises(ModelUnavailable, match="'llm:1' was unloaded by an operator"):
        await case.use("polite:1")
    case.table.obey({})
    assert await case.use("polite:1") == "/v1"
