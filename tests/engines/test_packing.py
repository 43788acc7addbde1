"""Packed batches: which architectures run so, and that it changes no answer."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from engine_calls import TOLERANCE, load
from tiny_models import build, wordpiece_tokenizer
from transformers.models.bert.modeling_bert import BertLayer

from deployments.engines import load_engine
from deployments.engines.laid_out import LaidOutLinear
from deployments.engines.packed_attention import segments
from deployments.engines.products import even
from deployments.engines.tokens import Tokens
from deployments.spec import ModelSpec
from deployments.types import Item

_BERT_LIKE: dict[str, Any] = {
    "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3,
    "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 40,
}  # fmt: skip
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
_DISTIL = {"n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 64, "max_position_embeddings": 40}
_DEBERTA = {**_BERT_LIKE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}

# Architecture by (task, model, its config), and whether its texts can share a sequence.
ARCHITECTURES: list[tuple[str, Any, Any, bool]] = [
    ("feature-extraction", tf.BertModel, tf.BertConfig(**_BERT_LIKE), True),
    ("text-classification", tf.BertForSequenceClassification, tf.BertConfig(**_BERT_LIKE), True),
    ("token-classification", tf.BertForTokenClassification, tf.BertConfig(**_BERT_LIKE), True),
    ("fill-mask", tf.BertForMaskedLM, tf.BertConfig(**_BERT_LIKE), True),
    ("feature-extraction", tf.RobertaModel, tf.RobertaConfig(**_BERT_LIKE, pad_token_id=0), True),
    ("text-classification", tf.RobertaForSequenceClassification, tf.RobertaConfig(**_BERT_LIKE, pad_token_id=0), True),
    ("token-classification", tf.XLMRobertaForTokenClassification, tf.XLMRobertaConfig(**_BERT_LIKE, pad_token_id=0), True),  # noqa: E501
    ("text-classification", tf.DistilBertForSequenceClassification, tf.DistilBertConfig(**_DISTIL), True),
    ("fill-mask", tf.DistilBertForMaskedLM, tf.DistilBertConfig(**_DISTIL), True),
    ("text-classification", tf.ElectraForSequenceClassification, tf.ElectraConfig(**_BERT_LIKE, embedding_size=16), True),  # noqa: E501
    ("text-classification", tf.AlbertForSequenceClassification, tf.AlbertConfig(**_BERT_LIKE, embedding_size=16), True),
    ("feature-extraction", tf.MPNetModel, tf.MPNetConfig(**_BERT_LIKE, pad_token_id=0), False),
    ("text-classification", tf.DebertaV2ForSequenceClassification, tf.DebertaV2Config(**_DEBERTA), False),
    ("feature-extraction", tf.ModernBertModel, tf.ModernBertConfig(**_BERT_LIKE, **_SPECIAL), False),
]  # fmt: skip


_FLAT = ("Bert", "Roberta", "XLMRoberta", "Electra")  # those whose layers are built as BERT's


@pytest.mark.parametrize(
    ("task", "model_class", "config", "is_packed"), ARCHITECTURES, ids=lambda v: getattr(v, "__name__", "")
)
def test_packed_answers_equal_those_of_each_text_alone(
    tmp_path: Path, task: str, model_class: Any, config: Any, is_packed: bool
) -> None:
    config.vocab_size = wordpiece_tokenizer(tmp_path)
    torch.manual_seed(0)
    model_class(config).save_pretrained(tmp_path)
    engine: Any = load(tmp_path, task)
    assert engine.is_packed is is_packed
    assert bool(own_forwards(engine._model)) == model_class.__name__.startswith(_FLAT)
    items = texts_of(engine)
    together = engine.run(items)
    for item, got in zip(items, together, strict=True):
        assert distance(got, engine.run([item])[0]) <= TOLERANCE


def test_batches_of_any_total_come_in_few_shapes(tiny: Callable[[str], Path]) -> None:
    engine: Any = load(tiny("bert"), "feature-extraction")
    seen: set[int] = set()
    first = next(one for one in engine._model.modules() if isinstance(one, torch.nn.LayerNorm))
    first.register_forward_pre_hook(lambda _, args: seen.add(args[0].shape[1]))
    item = texts_of(engine)[0]
    for n_texts in range(10, 74):
        assert len(engine.run([item] * n_texts)) == n_texts
    totals = range(10 * item.cost, 74 * item.cost, item.cost)
    assert seen == {even(n) for n in totals}
    assert len(seen) < len(totals)


def test_the_entry_can_turn_packing_off(tiny: Callable[[str], Path]) -> None:
    packed, padded = load(tiny("bert"), "feature-extraction"), load(tiny("bert"), "feature-extraction", packing=False)
    assert (packed.is_packed, padded.is_packed) == (True, False)
    items = texts_of(packed)
    assert all(distance(a, b) <= TOLERANCE for a, b in zip(packed.run(items), padded.run(items), strict=True))


def test_a_new_kind_of_model_is_tried_after_its_first_answer_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.engines.packed._TRIED", {})
    spec = ModelSpec.model_validate({"name": "m", "task": "feature-extraction", "source": {"path": str(tmp_path)}})
    build("bert", tmp_path)
    engine: Any = load_engine(tmp_path, spec, "cpu")
    assert (engine.is_packed, engine.is_settled) == (False, False)
    items = texts_of(engine)
    before = engine.run(items)
    engine.settle()
    assert (engine.is_packed, engine.is_settled) == (True, True)
    assert all(distance(a, b) <= TOLERANCE for a, b in zip(engine.run(items), before, strict=True))
    again: Any = load_engine(tmp_path, spec, "cpu")
    assert (again.is_packed, again.is_settled) == (True, True), "one trial speaks for all of a kind"
    engine.park()
    engine.unpark()
    assert all(distance(a, b) <= TOLERANCE for a, b in zip(engine.run(items), before, strict=True))
    pinned: Any = load_engine(tmp_path, spec.model_copy(update={"pinned": True}), "cpu")
    assert pinned.is_settled, "nobody waits for a pinned model's first answer"
    for one in (engine, again, pinned):
        one.close()


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_every_pooling_is_of_one_text_alone(tiny: Callable[[str], Path], pooling: str) -> None:
    engine = load(tiny("bert"), "feature-extraction", options={"pooling": pooling})
    items = texts_of(engine)
    assert engine.is_packed
    for item, got in zip(items, engine.run(items), strict=True):
        assert distance(got, engine.run([item])[0]) <= TOLERANCE


def test_a_model_that_cannot_be_packed_is_left_as_it_was(tmp_path: Path) -> None:
    engine: Any = load(build("gpt2-classifier", tmp_path), "text-classification")
    assert not engine.is_packed
    assert engine._model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in engine._model.modules())


@pytest.mark.parametrize("pinned", [True, False])
def test_layers_that_only_look_like_berts_run_their_own_way(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    """Built as BERT's, but more is done in them: the trial finds out, and packs them as they are."""
    monkeypatch.setattr("deployments.engines.packed._TRIED", {})
    usual = BertLayer.forward

    def stranger(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        changed: torch.Tensor = usual(self, hidden, *args, **kwargs) + 0.5 * hidden
        return changed

    monkeypatch.setattr(BertLayer, "forward", stranger)
    engine: Any = load(tiny("bert"), "feature-extraction", pinned=pinned)
    plain = load(tiny("bert"), "feature-extraction", packing=False)
    items = texts_of(engine)
    assert engine.is_packed
    assert own_forwards(engine._model) == []
    assert all(distance(a, b) <= TOLERANCE for a, b in zip(engine.run(items), plain.run(items), strict=True))


def test_a_closed_models_layers_are_as_they_were(tiny: Callable[[str], Path]) -> None:
    engine: Any = load(tiny("bert"), "feature-extraction", pinned=True)
    model = engine._model
    weights = {
        name: tensor.shape for name, tensor in load(tiny("bert"), "feature-extraction")._model.state_dict().items()
    }
    assert len(own_forwards(model)) == 2
    engine._forward.undo()
    assert not any("forward" in vars(module) for module in model.modules())
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pinned_models_weights_are_laid_out_for_the_cpu_and_come_back(
    tiny: Callable[[str], Path], dtype: str
) -> None:
    plain, pinned = (load(tiny("bert"), "feature-extraction", pinned=p, dtype=dtype) for p in (False, True))
    engine: Any = pinned
    assert any(isinstance(module, LaidOutLinear) for module in engine._model.modules())
    assert pinned.size_bytes() == plain.size_bytes()
    items = texts_of(pinned)
    limit = TOLERANCE if dtype == "float32" else 0.1
    want = plain.run(items)
    assert all(distance(a, b) <= limit for a, b in zip(pinned.run(items), want, strict=True))
    engine.park()
    assert not any(isinstance(module, LaidOutLinear) for module in engine._model.modules())
    engine.unpark()
    assert all(distance(a, b) <= limit for a, b in zip(pinned.run(items), want, strict=True))
    engine.close()


def test_long_texts_of_equal_length_share_a_call_of_attention() -> None:
    found = segments([20, 20, 50, 50, 50, 90], torch.empty(0))
    assert [(s.start, s.stop, s.n_rows, s.longest) for s in found] == [
        (0, 40, 2, 20),
        (40, 190, 3, 50),
        (190, 280, 1, 90),
    ]
    assert all(s.blocks is None for s in found)


def test_short_texts_fill_blocks_and_see_only_themselves() -> None:
    short, long = segments([3, 3, 12, 16, 16, 16, 40], torch.empty(0))
    assert (short.start, short.stop, short.n_rows) == (0, 66, 3)
    assert (long.start, long.stop) == (66, 106)
    blocks = short.blocks
    assert blocks is not None
    assert blocks.places[blocks.kept].tolist() == list(range(66))
    sees = (blocks.mask[:, 0] == 0).sum(-1).flatten()[blocks.kept]
    assert sees.tolist() == [n for n in (3, 3, 12, 16, 16, 16) for _ in range(n)]
    assert (blocks.mask == 0).any(-1).all()


def test_a_short_text_alone_needs_no_block() -> None:
    (only,) = segments([4], torch.empty(0))
    assert (only.stop, only.n_rows, only.longest, only.blocks) == (4, 1, 4, None)


def texts_of(engine: Any) -> list[Item]:
    """Return items of all lengths, some of them equal, in no order."""
    chance = random.Random(1)
    items = []
    for length in (7, 1, 30, 7, 12, 2, 30, 3, 16, 17):
        ids = chance.choices(range(5, 60), k=length)
        if engine.reads == "mask":
            ids[length // 2] = engine._tokenizer.tokenizer.mask_token_id
        tokens = Tokens(ids, [chance.randrange(2) for _ in ids])
        items.append(Item(tokens, length))
    return items


def own_forwards(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers that do not run as their class says."""
    return [m for m in model.modules() if "forward" in vars(m) and not isinstance(m, torch.nn.Linear)]


def distance(first: Any, second: Any) -> float:
    """Return the largest difference between two outputs, whatever the family adds to them."""
    if isinstance(first, tuple):
        first, second = first[1], second[1]
    assert first.shape == second.shape
    return float(abs(first - second).max())
