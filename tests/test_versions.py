"""Which versions are offered by which policy."""

from typing import Any

import pytest
from test_models import Case, entry, settle

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
