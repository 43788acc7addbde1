"""Zero-shot classifiers against transformers' own pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from engine_calls import alone, assert_equal, assert_matches_signature, load, request, together

from deployments.errors import InputTooLong, InvalidInput, ModelUnavailable
from deployments.types import InferRequest, Tensors, text_array

TASK = "zero-shot-classification"
TEXTS = ["the cat is happy", "no", "a sad dog on the red door"]
LABELS = ["happy", "sad dog", "the"]


def by_pipeline(folder: Path, labels: list[str], **params: Any) -> Tensors:
    pipe = transformers.pipeline(TASK, model=str(folder), device="cpu")
    rows = [pipe(text, labels, **params) for text in TEXTS]
    return {
        "label": np.stack([text_array(row["labels"]) for row in rows]),
        "score": np.array([row["scores"] for row in rows], dtype=np.float32),
    }


@pytest.mark.parametrize("name", ["bert-nli", "bart-nli"])
@pytest.mark.parametrize(
    ("labels", "params"),
    [(LABELS, {}), (LABELS, {"multi_label": True}), (LABELS[:1], {}), (LABELS, {"hypothesis_template": "it is {}!"})],
)
def test_batched_and_alone_equal_the_pipeline(
    tiny: Callable[[str], Path], name: str, labels: list[str], params: dict[str, Any]
) -> None:
    engine = load(tiny(name), TASK)
    template = {"hypothesis_template": "{}."}  # the default one is long for models of 32 tokens
    want = by_pipeline(tiny(name), labels, **{**template, **params})
    asked = request({**template, **params}, text=TEXTS, candidate_labels=labels)
    assert_equal(alone(engine, asked), want)
    got = together(engine, [request(template, text=["good"], candidate_labels=["red"]), asked])[1]
    assert_equal(got, want)
    assert_matches_signature(engine, asked, got)


def test_template_of_the_entry_stands_in_for_the_parameter(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert-nli"), TASK, options={"hypothesis_template": "it is {}"})
    want = by_pipeline(tiny("bert-nli"), LABELS, hypothesis_template="it is {}")
    assert_equal(alone(engine, request(text=TEXTS, candidate_labels=LABELS)), want)


def test_template_is_no_format_string(tiny: Callable[[str], Path]) -> None:
    # As a format string this would ask for a gigabyte of spaces.
    engine = load(tiny("bert-nli"), TASK)
    with pytest.raises(InvalidInput) as caught:
        engine.prepare(request({"hypothesis_template": "{:>1000000000}"}, text=["a"], candidate_labels=["b"]))
    assert caught.value.details["field"] == "hypothesis_template"


def test_truncation_cuts_the_text_and_never_the_label(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert-nli"), TASK)
    params = {"hypothesis_template": "{}", "truncate": True}
    long = request(params, text=["cat " * 40], candidate_labels=["red door", "good"])
    fits = request(params, text=["cat " * 27], candidate_labels=["red door"])
    assert [item.cost for item in engine.prepare(long)] == [32, 32]
    assert engine.prepare(long)[0].data.ids == engine.prepare(fits)[0].data.ids


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (request(text=["a", "cat " * 40], candidate_labels=["b", "c"]), "text[1]"),
        (request({"truncate": True}, text=["a"], candidate_labels=["cat " * 40]), "text[0]"),
        (request(text=["a"], candidate_labels=[b"ok", b"\xff"]), "candidate_labels[1]"),
        (request(text=["a"], candidate_labels=np.empty(0, dtype=object)), "candidate_labels"),
        (request(text=["a"] * 65, candidate_labels=["b"] * 64), "candidate_labels"),
        (request({"multi_label": "yes"}, text=["a"], candidate_labels=["b"]), "multi_label"),
    ],
)
def test_bad_input_names_its_field(tiny: Callable[[str], Path], asked: InferRequest, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(tiny("bert-nli"), TASK).prepare(asked)
    assert caught.value.details["field"] == field


def test_too_many_pairs_are_refused_before_any_is_tokenised(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert-nli"), TASK)
    with pytest.raises(InputTooLong, match="make 100000000 pairs; send at most 4096"):
        engine.prepare(request(text=["a"] * 10_000, candidate_labels=["b"] * 10_000))


def test_model_without_an_entailment_class_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ModelUnavailable, match="needs a model trained on NLI"):
        load(tiny("bert-classifier"), TASK)
