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
    ],
)
def test_a_wrong_alias_gets_its_line(aliases: dict[str, str], line: str, tmp_path: Path) -> None:
    lines = lines_of(tmp_path, changed(((*INGRESS, "user_config", "aliases"), aliases)))
    assert any(found.startswith(line) for found in lines), lines


def test_versions_names_and_models_may_be_aliases(tmp_path: Path) -> None:
    aliases = {"prod": "minilm:1", "minilm:prod": "minilm", "cassette": "cassette:1"}
    assert lines_of(tmp_path, changed(((*INGRESS, "user_config", "aliases"), aliases))) == []
