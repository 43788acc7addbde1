"""Tiny random-weight models on disk, by name: `build("bert-classifier", folder)`. No network, milliseconds each.

Weights are drawn wide, so that answers differ clearly from text to text and a mistake shows.
"""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

MAX_TOKENS = 32
WORDS = (
    "the a is to of and in on it you we not no good bad great awful happy sad red blue cat dog light turn off open door"
)
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece_tokenizer(folder: Path, max_length: int = MAX_TOKENS) -> int:
    """Save a lower-casing WordPiece tokenizer like BERT's; return its number of tokens."""
    letters = string.ascii_lowercase + string.digits
    vocab = [*_SPECIAL, *WORDS.split(), *letters, *string.punctuation, *(f"##{c}" for c in letters)]
    ids = {word: index for index, word in enumerate(dict.fromkeys(vocab))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))  # noqa: S106 - a token, not a password
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    saved = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **named,
    )
    saved.save_pretrained(folder)
    return len(saved)


def bytelevel_tokenizer(folder: Path, is_framed: bool) -> int:
    """Save a byte tokenizer like RoBERTa's (framed by <s> </s>) or GPT-2's; return its number of tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    ids = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if is_framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if is_framed:
        named |= {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    saved = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **named
    )
    saved.save_pretrained(folder)
    return len(saved)


def _classes(*names: str) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _bert(model_class: Any, **config: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        n_tokens = wordpiece_tokenizer(folder)
        settings = {
            **_SIZES,
            "vocab_size": n_tokens,
            "max_position_embeddings": MAX_TOKENS,
            "pad_token_id": 0,
            **config,
        }
        model_class(tf.BertConfig(**settings)).save_pretrained(folder)

    return make


def _sentence_bert(pooling: dict[str, Any], **files: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _bert(tf.BertModel)(folder)
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [
            {"idx": i, "path": p, "type": f"sentence_transformers.models.{k}"} for i, (p, k) in enumerate(kinds.items())
        ]
        (folder / "1_Pooling").mkdir()
        for name, content in {"modules": modules, "1_Pooling/config": pooling, **files}.items():
            (folder / f"{name}.json").write_text(json.dumps(content))

    return make


def _roberta(folder: Path) -> None:
    n_tokens = bytelevel_tokenizer(folder, is_framed=True)
    # As in real RoBERTa: two positions more than tokens, for positions count from the padding index on.
    config = tf.RobertaConfig(
        **_SIZES,
        vocab_size=n_tokens,
        max_position_embeddings=MAX_TOKENS + 2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    tf.RobertaForMaskedLM(config).save_pretrained(folder)


def _gpt2(folder: Path) -> None:
    n_tokens = bytelevel_tokenizer(folder, is_framed=False)
    config = tf.GPT2Config(
        vocab_size=n_tokens, n_positions=MAX_TOKENS, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=0, eos_token_id=2, pad_token_id=2, **_classes("NO", "YES"),
    )  # fmt: skip
    tf.GPT2ForSequenceClassification(config).save_pretrained(folder)


def _bart(folder: Path) -> None:
    n_tokens = bytelevel_tokenizer(folder, is_framed=True)
    config = tf.BartConfig(
        vocab_size=n_tokens, max_position_embeddings=128, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.3,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        **_classes("contradiction", "neutral", "entailment"),
    )  # fmt: skip
    tf.BartForSequenceClassification(config).save_pretrained(folder)


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
_DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def _decoder(model_class: Any, config_class: Any, **config: Any) -> Callable[[Path], None]:
    """Save a language model over bytes, with a chat template."""

    def make(folder: Path) -> None:
        n_tokens = bytelevel_tokenizer(folder, is_framed=False)
        tokenizer = tf.AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
        model_class(config_class(vocab_size=n_tokens, **{**_DECODER, **config})).save_pretrained(folder)

    return make


def _gpt2_decoder(folder: Path) -> None:
    n_tokens = bytelevel_tokenizer(folder, is_framed=False)
    config = tf.GPT2Config(
        vocab_size=n_tokens, n_positions=128, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    tf.GPT2LMHeadModel(config).save_pretrained(folder)


def _bart_seq2seq(folder: Path) -> None:
    n_tokens = bytelevel_tokenizer(folder, is_framed=True)
    config = tf.BartConfig(
        vocab_size=n_tokens, max_position_embeddings=128, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.3,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    tf.BartForConditionalGeneration(config).save_pretrained(folder)


def _t5(folder: Path) -> None:
    n_tokens = bytelevel_tokenizer(folder, is_framed=True)
    config = tf.T5Config(
        vocab_size=n_tokens, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, initializer_factor=3.0,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    tf.T5ForConditionalGeneration(config).save_pretrained(folder)


def _vit(folder: Path) -> None:
    config = tf.ViTConfig(image_size=32, patch_size=8, **_SIZES, **_classes("cat", "dog", "bird"))
    tf.ViTForImageClassification(config).save_pretrained(folder)
    tf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


_CLASSIFIER = tf.BertForSequenceClassification
_MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
_BUILDERS: dict[str, Callable[[Path], None]] = {
    "bert": _bert(tf.BertModel),
    "bert-classifier": _bert(_CLASSIFIER, **_classes("NEGATIVE", "NEUTRAL", "POSITIVE")),
    "bert-multi-label": _bert(_CLASSIFIER, problem_type="multi_label_classification", **_classes("toxic", "insult")),
    "bert-regression": _bert(_CLASSIFIER, problem_type="regression", **_classes("stars")),
    "bert-ranker": _bert(_CLASSIFIER, **_classes("LABEL_0")),
    "bert-nli": _bert(_CLASSIFIER, **_classes("contradiction", "neutral", "entailment")),
    "bert-tagger": _bert(tf.BertForTokenClassification, **_classes("O", "B-PER", "I-PER")),
    "bert-masked": _bert(tf.BertForMaskedLM),
    "sentence-bert": _sentence_bert(
        _MEAN, sentence_bert_config={"max_seq_length": 16}, config_sentence_transformers={"prompts": {"query": "to "}}
    ),
    "sentence-bert-cls": _sentence_bert({"pooling_mode": "cls"}),
    "sentence-bert-odd": _sentence_bert({"pooling_mode_weightedmean_tokens": True}),
    "roberta-masked": _roberta,
    "gpt2-classifier": _gpt2,
    "bart-nli": _bart,
    "vit": _vit,
    "llama": _decoder(tf.LlamaForCausalLM, tf.LlamaConfig),
    "llama-long": _decoder(tf.LlamaForCausalLM, tf.LlamaConfig, max_position_embeddings=4096),
    "mistral-windowed": _decoder(tf.MistralForCausalLM, tf.MistralConfig, sliding_window=8),
    "gpt2": _gpt2_decoder,
    "bart": _bart_seq2seq,
    "t5": _t5,
}
NAMES = tuple(_BUILDERS)


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Save the model of this name into `folder` and return it; equal seeds give equal weights."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _BUILDERS[name](folder)
    return folder


def adapter_folder(folder: Path, seed: int, out: int = 32, **config: Any) -> Path:
    """Save a random LoRA adapter of a tiny llama's query and down projections, as PEFT does."""
    folder.mkdir(parents=True)
    chance = torch.Generator().manual_seed(seed)
    rank = 4
    weights = {}
    for layer in range(2):
        for name, n_in in (("self_attn.q_proj", 32), ("mlp.down_proj", 64)):
            key = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(rank, n_in, generator=chance) * 0.3
            weights[f"{key}.lora_B.weight"] = torch.randn(out, rank, generator=chance) * 0.3
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
