"""Token classifiers against transformers' own pipeline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from engine_calls import alone, assert_matches_signature, load, request, together

from deployments.errors import InvalidInput
from deployments.types import Tensors

TASK = "token-classification"
TEXTS = ["the Cat is happy", "no", "été: 10 dogs ✓ turn off the light", "we not you"]


def check(answer: Tensors, want: list[list[dict[str, Any]]]) -> None:
    got = [json.loads(element) for element in answer["entities"]]
    assert len(got) == len(want)
    assert any(want), "a test without entities shows nothing"
    for entities, expected in zip(got, want, strict=True):
        assert [{**e, "score": 0} for e in entities] == [{**e, "score": 0} for e in expected]
        assert [e["score"] for e in entities] == pytest.approx([float(e["score"]) for e in expected], abs=1e-4)


def test_batched_and_alone_equal_the_pipeline(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert-tagger"), TASK)
    want = [transformers.pipeline(TASK, model=str(tiny("bert-tagger")), device="cpu")(text) for text in TEXTS]
    asked = request({"aggregation_strategy": "none"}, text=TEXTS)
    check(alone(engine, asked), want)
    got = together(engine, [request(text=["a"]), asked])[1]
    check(got, want)
    assert_matches_signature(engine, asked, got)


def test_labels_stand_in_index_order(tiny: Callable[[str], Path]) -> None:
    assert load(tiny("bert-tagger"), TASK).labels == ("O", "B-PER", "I-PER")


@pytest.mark.parametrize("strategy", ["simple", "first", 1])
def test_other_aggregation_is_refused_by_name(tiny: Callable[[str], Path], strategy: object) -> None:
    with pytest.raises(InvalidInput, match="'none'") as caught:
        load(tiny("bert-tagger"), TASK).prepare(request({"aggregation_strategy": strategy}, text=["a"]))
    assert caught.value.details["field"] == "aggregation_strategy"


def test_too_long_text_is_refused_or_cut(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert-tagger"), TASK)
    with pytest.raises(InvalidInput) as caught:
        engine.prepare(request(text=["cat " * 40]))
    assert caught.value.details == {"field": "text[0]", "n_tokens": 42, "max_tokens": 32}
    assert engine.prepare(request({"truncate": True}, text=["cat " * 40]))[0].cost == 32
