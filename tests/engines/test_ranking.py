"""Rankers: a cross-encoder against the plain model, a bi-encoder against embeddings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_calls import alone, assert_equal, assert_matches_signature, load, request, together
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from deployments.errors import InputTooLong, InvalidInput, ModelUnavailable
from deployments.types import Array

TASK = "text-ranking"
QUERY = ["is the dog sad"]
TEXTS = ["the dog is sad", "no", "a cat on the red door is not happy"]


def logits(folder: Path) -> Array:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(QUERY[0], t, return_tensors="pt")).logits[0] for t in TEXTS]).numpy()


def test_cross_encoder_equals_the_sigmoid_of_the_models_logit(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert-ranker"), TASK)
    asked = request(query=QUERY, text=TEXTS)
    want = {"score": 1 / (1 + np.exp(-logits(tiny("bert-ranker"))))}
    assert_equal(alone(engine, asked), want)
    first, second = together(engine, [asked, request(query=["a cat"], text=TEXTS[:1])])
    assert_equal(first, want)
    assert second["score"].shape == (1,)
    assert_matches_signature(engine, asked, first)


def test_cross_encoder_gives_raw_scores_on_request(tiny: Callable[[str], Path]) -> None:
    answer = alone(load(tiny("bert-ranker"), TASK), request({"raw_scores": True}, query=QUERY, text=TEXTS))
    assert_equal(answer, {"score": logits(tiny("bert-ranker"))})


@pytest.mark.parametrize(
    "said",
    [
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    ],
)
def test_activation_named_in_the_models_config_counts(
    tiny: Callable[[str], Path], tmp_path: Path, said: dict[str, object]
) -> None:
    folder = shutil.copytree(tiny("bert-ranker"), tmp_path / "identity")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | said))
    assert_equal(alone(load(folder, TASK), request(query=QUERY, text=TEXTS)), {"score": logits(folder)})


def test_cross_encoder_refuses_a_classifier_of_several_classes(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ModelUnavailable, match="has one class, this model has 3"):
        load(tiny("bert-classifier"), TASK)


@pytest.mark.parametrize("engine_name", ["cross-encoder", "bi-encoder"])
@pytest.mark.parametrize(
    ("query", "text", "field"),
    [
        (["a " * 40], ["b"], "query[0]"),
        (["a"], ["b", "cat " * 40], "text[1]"),
        ([b"\xff"], ["b"], "query[0]"),
        (["a"], ["b", b"\xff"], "text[1]"),
    ],
)
def test_bad_input_names_query_or_text(
    tiny: Callable[[str], Path], engine_name: str, query: list[object], text: list[object], field: str
) -> None:
    model = "bert-ranker" if engine_name == "cross-encoder" else "bert"
    engine = load(tiny(model), TASK, engine=engine_name)
    as_bytes = [t.encode() if isinstance(t, str) else t for t in text]
    with pytest.raises(InvalidInput) as caught:
        engine.prepare(request(query=query, text=as_bytes))
    assert caught.value.details["field"] == field


def test_too_long_together_is_cut_on_request(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert-ranker"), TASK)
    long = {"query": QUERY, "text": ["cat " * 28]}
    with pytest.raises(InputTooLong, match="together with its pair"):
        engine.prepare(request(**long))
    assert [item.cost for item in engine.prepare(request({"truncate": True}, **long))] == [32]


def test_bi_encoder_is_the_cosine_of_the_embeddings(tiny: Callable[[str], Path]) -> None:
    embedder = load(tiny("bert"), "feature-extraction", options={"normalize": True})
    vectors = alone(embedder, request(text=QUERY + TEXTS))["embedding"]
    engine = load(tiny("bert"), TASK, engine="bi-encoder")
    asked = request(query=QUERY, text=TEXTS)
    want = {"score": vectors[1:] @ vectors[0]}
    assert_equal(alone(engine, asked), want)
    batched = together(engine, [asked, request(query=["no"], text=["good", "bad"])])[0]
    assert_equal(batched, want)
    assert_matches_signature(engine, asked, batched)


def test_bi_encoder_uses_the_models_query_prompt(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("sentence-bert"), TASK, engine="bi-encoder")  # its files say: prompts.query = "to "
    score = alone(engine, request(query=["open"], text=["to open"]))["score"]
    assert score[0] == pytest.approx(1, abs=1e-5)


def test_real_minilm_ranks_the_answer_first(minilm: Path) -> None:
    engine = load(minilm, TASK, engine="bi-encoder")
    texts = ["Bread is baked in an oven.", "Hold the reset button of the router for ten seconds.", "It rains."]
    scores = alone(engine, request(query=["How do I reset my router?"], text=texts))["score"]
    assert scores.argmax() == 1


@pytest.mark.parametrize(("engine_name", "model"), [("cross-encoder", "bert-ranker"), ("bi-encoder", "sentence-bert")])
def test_pairs_are_scored_as_each_alone(tiny: Callable[[str], Path], engine_name: str, model: str) -> None:
    engine = load(tiny(model), TASK, engine=engine_name)
    queries = ["a cat", "is the dog sad", "no"]
    asked = request(queries=queries, text=["sad", "a dog", "no"])
    want = [
        alone(engine, request(query=[query], text=[text]))["score"]
        for query, text in zip(queries, ["sad", "a dog", "no"], strict=True)
    ]
    assert_equal(alone(engine, asked), {"score": np.concatenate(want)})
    mixed, _ = together(engine, [asked, request(query=["no"], text=["good", "bad"])])
    assert_equal(mixed, {"score": np.concatenate(want)})
    with pytest.raises(InvalidInput, match="'queries' has 3 elements but 'text' has 1"):
        engine.prepare(request(queries=queries, text=["a"]))
    for wrong, message in (
        ({"queries": ["a"], "query": ["a"], "text": ["b"]}, "give one of them"),
        ({"text": ["b"]}, r"missing required input\(s\) \['query'\]"),
    ):
        with pytest.raises(InvalidInput, match=message):
            alone(engine, request(**wrong))
