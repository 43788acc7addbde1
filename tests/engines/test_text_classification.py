"""Text classifiers against transformers' own pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from engine_calls import alone, assert_equal, assert_matches_signature, load, request, together

from deployments.errors import InvalidInput, ModelUnavailable
from deployments.types import InferRequest, Tensors, text_array

TASK = "text-classification"
TEXTS = ["the cat is happy", "no", "a sad dog on the red door", "we turn off it you is not good and bad"]


def by_pipeline(folder: Path, inputs: list[Any], **params: Any) -> Tensors:
    pipe = transformers.pipeline(TASK, model=str(folder), device="cpu")
    rows = pipe(inputs, **{"top_k": None, **params})
    return {
        "label": np.stack([text_array([one["label"] for one in row]) for row in rows]),
        "score": np.array([[one["score"] for one in row] for row in rows], dtype=np.float32),
    }


@pytest.mark.parametrize(
    "name", ["bert-classifier", "bert-multi-label", "bert-regression", "bert-ranker", "gpt2-classifier", "bart-nli"]
)
def test_batched_and_alone_equal_the_pipeline(tiny: Callable[[str], Path], name: str) -> None:
    engine = load(tiny(name), TASK)
    # GPT-2 and BART of the tiny models read bytes: 32 and 128 of them at most.
    texts = [text[:30] for text in TEXTS]
    want = by_pipeline(tiny(name), texts)
    asked = request(text=texts)
    assert_equal(alone(engine, asked), want)
    first, _, last = together(engine, [asked, request(text=["good"]), asked])
    assert_equal(first, want)
    assert_equal(last, want)
    assert_matches_signature(engine, asked, first)


def test_text_pairs_equal_the_pipeline_even_beside_single_texts(tiny: Callable[[str], Path]) -> None:
    for name in ("bert-classifier", "bart-nli"):
        engine = load(tiny(name), TASK)
        pairs = request(text=["a cat", "the dog is sad"], text_pair=["no", "open the door"])
        want = by_pipeline(
            tiny(name), [{"text": "a cat", "text_pair": "no"}, {"text": "the dog is sad", "text_pair": "open the door"}]
        )
        got, single = together(engine, [pairs, request(text=["a cat"])])
        assert_equal(got, want)
        assert_equal(single, by_pipeline(tiny(name), ["a cat"]))


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_function_to_apply_and_top_k_equal_the_pipeline(tiny: Callable[[str], Path], function: str) -> None:
    params = {"function_to_apply": function, "top_k": 2}
    want = by_pipeline(tiny("bert-classifier"), TEXTS, **params)
    assert_equal(alone(load(tiny("bert-classifier"), TASK), request(params, text=TEXTS)), want)
    assert_equal(alone(load(tiny("bert-classifier"), TASK, options=params), request(text=TEXTS)), want)


def test_labels_stand_in_index_order(tiny: Callable[[str], Path]) -> None:
    assert load(tiny("bert-classifier"), TASK).labels == ("NEGATIVE", "NEUTRAL", "POSITIVE")


def test_more_classes_than_there_are_gives_all(tiny: Callable[[str], Path]) -> None:
    answer = alone(load(tiny("bert-classifier"), TASK), request({"top_k": 50}, text=["a"]))
    assert answer["score"].shape == (1, 3)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (request({"top_k": 0}, text=["a"]), "top_k"),
        (request({"top_k": "two"}, text=["a"]), "top_k"),
        (request({"function_to_apply": "relu"}, text=["a"]), "function_to_apply"),
        (request({"temperature": 1}, text=["a"]), "temperature"),
        (request(text=["a", "b"], text_pair=["c"]), "text_pair"),
        (request(text=[b"ok", b"\xff\xfe"]), "text[1]"),
        (request(text=["a"], text_pair=[b"\xff"]), "text_pair[0]"),
        (request(text=np.empty(0, dtype=object)), "text"),
        (request(text=["good", "bad " * 40]), "text[1]"),
    ],
)
def test_bad_input_names_its_field(tiny: Callable[[str], Path], asked: InferRequest, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(tiny("bert-classifier"), TASK).prepare(asked)
    assert caught.value.details["field"] == field


def test_text_without_tokens_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInput, match=r"text\[1\] is empty"):
        load(tiny("gpt2-classifier"), TASK).prepare(request(text=["a", ""]))


def test_model_without_a_trained_head_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ModelUnavailable, match=r"no trained .*classifier"):
        load(tiny("bert-masked"), TASK)
