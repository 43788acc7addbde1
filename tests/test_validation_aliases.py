"""`serve_app.validation`: aliases stand for models of the file."""

from pathlib import Path

import pytest
from config_files import INGRESS, changed, lines_of

PLACE = "applications[0].deployments[0].user_config.aliases"


@pytest.mark.parametrize(
    ("aliases", "line"),
    [
        ({"prod": "minilm:2"}, f"{PLACE}.prod: no pool has this model (value 'minilm:2'); did you mean 'minilm:1'?"),
        ({"prod": "minlm"}, f"{PLACE}.prod: no pool has this model (value 'minlm'); did you mean 'minilm'?"),
        ({"prod": "minilm", "p2": "prod"}, f"{PLACE}.p2: an alias stands for a model, not for another alias"),
        ({"minilm:1": "cassette:1"}, f"{PLACE}.minilm:1: there is a model version of this name"),
        ({"a b": "minilm"}, f"{PLACE}"),
        ({"prod": "a:b:c"}, f"{PLACE}.prod: "),
        ({"ab": {"targets": {"minilm": 9, "cassette": 1}}}, f"{PLACE}.ab: does fill-mask, but minilm does feature-"),
        ({"ab": {"targets": {"minilm": 9, "sre-minlm": 1}}}, f"{PLACE}.ab: no pool has this model (value 'sre-minlm')"),
        ({"ab": {"targets": {"minilm": 0}}}, f"{PLACE}.ab.targets: at least one target needs a weight above 0"),
        (
            {"ab": {"targets": {"minilm": 1}, "shadows": [{"model": "cassette"}]}},
            f"{PLACE}.ab.shadows[0].model: does fill-mask, but minilm does feature-extraction",
        ),
        ({"ab": {"targets": {"minilm": 1}, "stiky": "key"}}, f"{PLACE}.ab.stiky: unknown key"),
    ],
)
def test_a_wrong_alias_gets_its_line(aliases: dict[str, str], line: str, tmp_path: Path) -> None:
    lines = lines_of(tmp_path, changed(((*INGRESS, "user_config", "aliases"), aliases)))
    assert any(found.startswith(line) for found in lines), lines


@pytest.mark.parametrize(
    ("fallbacks", "line"),
    [
        (
            {"minlm": {"to": ["sre-minilm"]}},
            "minlm: there is no model and no alias of this name; did you mean 'minilm'?",
        ),
        ({"minilm": {"to": ["sre"]}}, "minilm.to: no pool has this model (value 'sre')"),
        ({"minilm": {"to": ["cassette"]}}, "minilm.to: does fill-mask, but minilm does feature-extraction"),
        ({"prod": {"to": ["cassette"]}}, "prod.to: does fill-mask, but prod does feature-extraction"),
        ({"minilm": {}}, "minilm: give `to`, `answer`, or both"),
    ],
)
def test_a_wrong_fallback_gets_its_line(fallbacks: dict[str, object], line: str, tmp_path: Path) -> None:
    ingress = (*INGRESS, "user_config")
    edits = (((*ingress, "aliases"), {"prod": "minilm"}), ((*ingress, "fallbacks"), fallbacks))
    lines = lines_of(tmp_path, changed(*edits))
    place = PLACE.replace("aliases", "fallbacks")
    assert any(found.startswith(f"{place}.{line}") for found in lines), lines


def test_splits_shadows_and_fallbacks_of_one_task_are_right(tmp_path: Path) -> None:
    ingress = (*INGRESS, "user_config")
    split = {"targets": {"minilm": 9, "sre-minilm:1": 1}, "sticky": "user", "shadows": [{"model": "sre-minilm"}]}
    edits = (((*ingress, "aliases"), {"embed": split}), ((*ingress, "fallbacks"), {"embed": {"to": ["sre-minilm"]}}))
    assert lines_of(tmp_path, changed(*edits)) == []


def test_versions_names_and_models_may_be_aliases(tmp_path: Path) -> None:
    aliases = {"prod": "minilm:1", "minilm:prod": "minilm", "cassette": "cassette:1"}
    assert lines_of(tmp_path, changed(((*INGRESS, "user_config", "aliases"), aliases))) == []
