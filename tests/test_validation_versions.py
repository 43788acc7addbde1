"""`serve_app.validation`: version policies are of models that are there, and leave something."""

from pathlib import Path
from typing import Any

import pytest
from config_files import SHARED, changed, lines_of

PLACE = "applications[2].deployments[1].user_config.versions"


@pytest.mark.parametrize(
    ("policies", "line"),
    [
        ({"casette": "all"}, f"{PLACE}.casette: this pool has no model of this name; did you mean 'cassette'?"),
        ({"cassette": ["7"]}, f"{PLACE}.cassette: offers no version of this model"),
        ({"cassette": {"latest": 0}}, f"{PLACE}.cassette"),
        ({"cassette": {"newest": 1}}, f"{PLACE}.cassette"),
    ],
)
def test_a_wrong_policy_gets_its_line(policies: Any, line: str, tmp_path: Path) -> None:
    lines = lines_of(tmp_path, changed(((*SHARED, "user_config", "versions"), policies)))
    assert any(found.startswith(line) for found in lines), lines


@pytest.mark.parametrize("policy", ["all", {"latest": 1}, ["1"]])
def test_a_right_one_gets_none(policy: Any, tmp_path: Path) -> None:
    assert lines_of(tmp_path, changed(((*SHARED, "user_config", "versions"), {"cassette": policy}))) == []
