"""Models with the same tokenizer files share a tokenizer; others never do; none is kept without bound."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.engines import shared_tokenizers
from deployments.engines.shared_tokenizers import tokenizer_in


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    shared_tokenizers._LATEST.clear()
    shared_tokenizers._IN_USE.clear()
    yield
    shared_tokenizers._LATEST.clear()
    shared_tokenizers._IN_USE.clear()


@pytest.fixture
def other(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("bert"), tmp_path / "other"))


def test_the_same_files_make_one_tokenizer_whatever_else_differs(tiny: Callable[[str], Path], other: Path) -> None:
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"id2label": {"0": "good", "1": "bad"}}))
    assert tokenizer_in(other) is tokenizer_in(tiny("bert"))


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("tokenizer_config.json", "model_max_length", 11),
        ("special_tokens_map.json", "pad_token", "[UNK]"),
        ("config.json", "model_type", "roberta"),
        (
            "tokenizer.json",
            "truncation",
            {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        ),
    ],
)
def test_any_other_file_makes_another_tokenizer(
    file: str, field: str, value: object, tiny: Callable[[str], Path], other: Path
) -> None:
    said = json.loads((other / file).read_text()) if (other / file).exists() else {}
    (other / file).write_text(json.dumps(said | {field: value}))
    assert tokenizer_in(other) is not tokenizer_in(tiny("bert"))


def test_loads_at_the_same_time_share_one(tiny: Callable[[str], Path]) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(tokenizer_in, [tiny("bert")] * 8))
    assert len({id(one) for one in made}) == 1


def test_a_large_one_leaves_with_its_last_model(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tokenizers, "_KEPT_BYTES", 10)
    made = tokenizer_in(tiny("bert"))
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None


def test_the_latest_small_ones_are_kept_for_models_that_come_back(tiny: Callable[[str], Path]) -> None:
    first = id(tokenizer_in(tiny("bert")))
    gc.collect()
    assert id(tokenizer_in(tiny("bert"))) == first
