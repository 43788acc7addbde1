"""Sentence embeddings against plain transformers: pooling, length, limits and prompts as the model's files say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_calls import alone, assert_equal, assert_matches_signature, load, request, together
from transformers import AutoModel, AutoTokenizer

from deployments.errors import InputTooLong, InvalidInput, ModelUnavailable
from deployments.types import Array

TASK = "feature-extraction"
TEXTS = ["the cat is happy", "no", "a sad dog on the red door", "we turn off it you is not good and bad"]


def mean_pooled(folder: Path, texts: list[str], normalize: bool) -> Array:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vector = hidden.mean(0)
        rows.append((vector / vector.norm() if normalize else vector).numpy())
    return np.stack(rows)


def test_real_minilm_equals_mean_pooling_and_l2_by_hand(minilm: Path) -> None:
    engine = load(minilm, TASK)
    texts = ["How do I reset my router password?", "hi", "A long text about nothing much. " * 12]
    want = mean_pooled(minilm, texts, normalize=True)
    asked = request(text=texts)
    assert_equal(alone(engine, asked), {"embedding": want})
    batched = together(engine, [asked, request(text=["another one in between"]), asked])
    assert_equal(batched[0], {"embedding": want})
    assert_equal(batched[2], {"embedding": want})
    assert_matches_signature(engine, asked, batched[0])
    assert engine.signature.outputs[0].shape == (-1, 384)


def test_minilm_refuses_what_is_over_its_own_256_tokens(minilm: Path) -> None:
    engine = load(minilm, TASK)
    with pytest.raises(InputTooLong) as caught:
        engine.prepare(request(text=["short", "word " * 300]))
    assert caught.value.details == {"field": "text[1]", "n_tokens": 302, "max_tokens": 256}


def test_folder_without_sentence_files_means_without_normalising(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert"), TASK)
    want = mean_pooled(tiny("bert"), TEXTS, normalize=False)
    assert_equal(alone(engine, request(text=TEXTS)), {"embedding": want})
    assert_equal(together(engine, [request(text=TEXTS)])[0], {"embedding": want})


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_every_pooling_gives_the_same_batched_and_alone(tiny: Callable[[str], Path], pooling: str) -> None:
    engine = load(tiny("bert"), TASK, options={"pooling": pooling})
    tokenizer, model = AutoTokenizer.from_pretrained(tiny("bert")), AutoModel.from_pretrained(tiny("bert")).eval()
    want = []
    for text in TEXTS:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        want.append({"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0), "last": hidden[-1]}[pooling])
    assert_equal(together(engine, [request(text=TEXTS)])[0], {"embedding": torch.stack(want).numpy()})


def test_pooling_is_read_from_newer_files_and_options_come_first(tiny: Callable[[str], Path]) -> None:
    folder = tiny("sentence-bert-cls")
    asked = request(text=TEXTS)
    plain = {
        p: alone(load(tiny("bert"), TASK, options={"pooling": p, "normalize": True}), asked) for p in ("cls", "max")
    }
    assert_equal(alone(load(folder, TASK), asked), plain["cls"])
    assert_equal(alone(load(folder, TASK, options={"pooling": "max"}), asked), plain["max"])


def test_normalising_is_decided_by_parameter_then_option_then_files(tiny: Callable[[str], Path]) -> None:
    def norm(engine: Any, **params: Any) -> float:
        return float(np.linalg.norm(alone(engine, request(params, text=["a cat"]))["embedding"]))

    by_files, by_option = (
        load(tiny("sentence-bert"), TASK),
        load(tiny("sentence-bert"), TASK, options={"normalize": False}),
    )
    assert norm(by_files) == pytest.approx(1)
    assert norm(by_files, normalize=False) > 1.5
    assert norm(by_option) > 1.5
    assert norm(by_option, normalize=True) == pytest.approx(1)


def test_max_seq_length_of_the_files_lowers_the_limit_and_truncation_cuts_there(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("sentence-bert"), TASK)
    with pytest.raises(InputTooLong, match="truncate=true") as caught:
        engine.prepare(request(text=["cat " * 20]))
    assert caught.value.details["max_tokens"] == 16
    cut = request({"truncate": True}, text=["cat " * 20])
    assert engine.prepare(cut)[0].cost == 16
    assert_equal(alone(engine, cut), alone(engine, request(text=["cat " * 14])))
    by_entry = load(tiny("sentence-bert"), TASK, truncation=True, max_tokens=8)
    assert by_entry.prepare(request(text=["cat " * 20]))[0].cost == 8


def test_default_prompt_and_lower_casing_of_the_files_are_applied(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    from tiny_models import build

    folder = build("sentence-bert", tmp_path / "prompted")
    prompting = {"prompts": {"doc": "the dog "}, "default_prompt_name": "doc"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompting))
    assert_equal(
        alone(load(folder, TASK), request(text=["is sad"])),
        alone(load(tiny("sentence-bert"), TASK), request(text=["the dog is sad"])),
    )


def test_unsupported_pooling_is_refused_by_name(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ModelUnavailable, match=r"weightedmean_tokens is not supported; set options.pooling"):
        load(tiny("sentence-bert-odd"), TASK)
    load(tiny("sentence-bert-odd"), TASK, options={"pooling": "mean"})


def test_unsupported_module_is_refused_by_name(tmp_path: Path) -> None:
    from tiny_models import build

    folder = build("sentence-bert", tmp_path / "dense")
    modules = [
        *json.loads((folder / "modules.json").read_text()),
        {"idx": 3, "path": "3_Dense", "type": "x.models.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelUnavailable, match="module Dense is not supported"):
        load(folder, TASK)


@pytest.mark.parametrize(
    ("params", "field", "says"),
    [
        (
            {"normalise": True},
            "normalise",
            "this model knows: truncate, truncation_side, pooled, prompt_name, token_ids, normalize",
        ),
        ({"normalize": "yes"}, "normalize", "valid boolean"),
        ({"truncate": 1}, "truncate", "valid boolean"),
    ],
)
def test_wrong_parameter_is_named(tiny: Callable[[str], Path], params: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        load(tiny("bert"), TASK).prepare(request(params, text=["a"]))
    assert caught.value.details["field"] == field


def test_token_ids_give_what_their_text_gives(minilm: Path) -> None:
    engine = load(minilm, TASK)
    ids = AutoTokenizer.from_pretrained(minilm)(TEXTS)["input_ids"]
    written = [" ".join(map(str, row)) for row in ids]
    assert_equal(alone(engine, request(text=written, params={"token_ids": True})), alone(engine, request(text=TEXTS)))


@pytest.mark.parametrize("text", ["", "1 two", "-1", "99999999", "30522", "1.5", "1" * 20])
def test_what_is_no_token_id_of_the_model_is_named(minilm: Path, text: str) -> None:
    engine = load(minilm, TASK)
    with pytest.raises(InvalidInput) as caught:
        engine.prepare(request(text=["101 102", text], params={"token_ids": True}))
    assert caught.value.details["field"] == "text[1]"


def test_too_many_token_ids_are_refused_or_cut(minilm: Path) -> None:
    engine = load(minilm, TASK)
    asked = {"text": ["7 " * 300]}
    with pytest.raises(InputTooLong):
        engine.prepare(request(**asked, params={"token_ids": True}))
    [item] = engine.prepare(request(**asked, params={"token_ids": True, "truncate": True}))
    assert item.cost == 256
