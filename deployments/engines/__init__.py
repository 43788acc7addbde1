"""The table of engine families: which class serves a task, imported only when a model of it is loaded.

A new family is one file beside this one and one row here.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from deployments.engines.base import Engine, unavailable
from deployments.engines.options import (
    ClassificationOptions,
    CustomOptions,
    EmbeddingOptions,
    FillMaskOptions,
    GenerationOptions,
    NoOptions,
    TensorOptions,
    ZeroShotOptions,
)
from deployments.errors import ModelUnavailable
from deployments.spec import ModelSpec, Strict, explain
from deployments.types import Datatype, Item, Signature, Task, TensorSpec

_TEXT = TensorSpec("text", Datatype.BYTES, (-1,))
_LABEL_SCORE = (TensorSpec("label", Datatype.BYTES, (-1, -1)), TensorSpec("score", Datatype.FP32, (-1, -1)))
_PROMPTS = Signature(
    (
        TensorSpec("text", Datatype.BYTES, (-1,), optional=True),
        TensorSpec("messages", Datatype.BYTES, (-1,), optional=True),
    ),
    (
        TensorSpec("text", Datatype.BYTES, (-1,)),
        TensorSpec("finish_reason", Datatype.BYTES, (-1,)),
        TensorSpec("n_tokens", Datatype.INT64, (-1,)),
    ),
)
_RANKING = Signature(
    (
        TensorSpec("query", Datatype.BYTES, (1,)),
        _TEXT,
        TensorSpec("queries", Datatype.BYTES, (-1,), optional=True, instead_of="query"),
    ),
    (TensorSpec("score", Datatype.FP32, (-1,)),),
)
_ADAPTER = "lora-adapter"
_OF_THE_BASE = ("batch", "max_tokens", "weight")  # an adapter has none of its own
_DYNAMIC = Signature((), ())  # known only from the model's options or after loading


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One family: where its class is, what it can do, what may be written under `options`."""

    factory: str
    tasks: tuple[Task, ...]
    options: type[Strict]
    signature: Signature  # before loading: varying sizes stand as -1
    rows: tuple[str, ...] = ()  # inputs whose rows are answered independently of one another


ENGINES: dict[str, EngineRow] = {
    "sentence-embedding": EngineRow(
        "deployments.engines.sentence_embedding:SentenceEmbedding",
        (Task.FEATURE_EXTRACTION,),
        EmbeddingOptions,
        Signature((_TEXT,), (TensorSpec("embedding", Datatype.FP32, (-1, -1)),)),
        rows=("text",),
    ),
    "text-classification": EngineRow(
        "deployments.engines.text_classification:TextClassification",
        (Task.TEXT_CLASSIFICATION,),
        ClassificationOptions,
        Signature((_TEXT, TensorSpec("text_pair", Datatype.BYTES, (-1,), optional=True)), _LABEL_SCORE),
        rows=("text", "text_pair"),
    ),
    "zero-shot-classification": EngineRow(
        "deployments.engines.zero_shot_classification:ZeroShotClassification",
        (Task.ZERO_SHOT_CLASSIFICATION,),
        ZeroShotOptions,
        Signature((_TEXT, TensorSpec("candidate_labels", Datatype.BYTES, (-1,))), _LABEL_SCORE),
        rows=("text",),
    ),
    "token-classification": EngineRow(
        "deployments.engines.token_classification:TokenClassification",
        (Task.TOKEN_CLASSIFICATION,),
        NoOptions,
        Signature((_TEXT,), (TensorSpec("entities", Datatype.BYTES, (-1,)),)),
        rows=("text",),
    ),
    "fill-mask": EngineRow(
        "deployments.engines.fill_mask:FillMask",
        (Task.FILL_MASK,),
        FillMaskOptions,
        Signature(
            (_TEXT,),
            (
                TensorSpec("token_str", Datatype.BYTES, (-1, -1)),
                TensorSpec("score", Datatype.FP32, (-1, -1)),
                TensorSpec("token", Datatype.INT64, (-1, -1)),
                TensorSpec("sequence", Datatype.BYTES, (-1, -1)),
            ),
        ),
        rows=("text",),
    ),
    "cross-encoder": EngineRow(
        "deployments.engines.cross_encoder:CrossEncoder",
        (Task.TEXT_RANKING,),
        NoOptions,
        _RANKING,
        rows=("queries", "text"),
    ),
    "bi-encoder": EngineRow(
        "deployments.engines.bi_encoder:BiEncoder",
        (Task.TEXT_RANKING,),
        EmbeddingOptions,
        _RANKING,
        rows=("queries", "text"),
    ),
    "image-classification": EngineRow(
        "deployments.engines.image_classification:ImageClassification",
        (Task.IMAGE_CLASSIFICATION,),
        ClassificationOptions,
        Signature((TensorSpec("image", Datatype.BYTES, (-1,)),), _LABEL_SCORE),
        rows=("image",),
    ),
    "text-generation": EngineRow(
        "deployments.engines.text_generation:TextGeneration", (Task.TEXT_GENERATION,), GenerationOptions, _PROMPTS
    ),
    _ADAPTER: EngineRow("deployments.engines.lora:LoraAdapter", (Task.TEXT_GENERATION,), NoOptions, _PROMPTS),
    "text2text-generation": EngineRow(
        "deployments.engines.text2text_generation:Text2TextGeneration",
        (Task.TEXT2TEXT_GENERATION,),
        GenerationOptions,
        _PROMPTS,
    ),
    "tensor": EngineRow("deployments.engines.tensor:TensorProgram", (Task.TENSOR,), TensorOptions, _DYNAMIC),
    "custom": EngineRow("deployments.engines.custom:load_custom", tuple(Task), CustomOptions, _DYNAMIC),
}


def engine_name(spec: ModelSpec) -> str:
    """Return the family an entry asks for, or its task's first one.

    Raises:
        ValueError: the family does not exist or does not do this task.
    """
    default = _ADAPTER if spec.base is not None else next(n for n, row in ENGINES.items() if spec.task in row.tasks)
    name = spec.engine or default
    if name not in ENGINES:
        raise ValueError(f"engine: {name!r} is not one of {', '.join(ENGINES)}")
    if (name == _ADAPTER) != (spec.base is not None):
        raise ValueError(f"engine: {_ADAPTER!r} goes with `base`, and nothing else does")
    if spec.task not in ENGINES[name].tasks:
        fit = ", ".join(n for n, row in ENGINES.items() if spec.task in row.tasks)
        raise ValueError(f"engine: {name!r} does not do task {spec.task.value!r}; these do: {fit}")
    return name


def check_options(spec: ModelSpec) -> Strict:
    """Return the entry's options, checked against its engine family.

    Raises:
        ValueError: names `engine`, the option at fault, or a field that an adapter leaves to its base.
    """
    row = ENGINES[engine_name(spec)]
    for field in _OF_THE_BASE:
        if spec.base is not None and field in spec.model_fields_set:
            raise ValueError(f"{field}: an adapter runs in the batches of its base; write it there")
    try:
        return row.options.model_validate(spec.options)
    except ValueError as exc:
        raise ValueError(f"options: {explain(exc)}") from None


def missing_bases(models: Iterable[ModelSpec]) -> dict[str, str]:
    """Return, by key, what is wrong with adapters whose base is not a model of the same pool."""
    own = {model.key: model for model in models}
    return {
        model.key: f"base: {model.base!r} is not a model of this pool that is no adapter itself; write name:version"
        for model in own.values()
        if model.base is not None and (model.base not in own or own[model.base].base is not None)
    }


def cache_bytes(spec: ModelSpec) -> int:
    """Return what a generating model's entry sets aside for keys and values, beside its weights; else 0."""
    options = check_options(spec)
    return options.cache_bytes if isinstance(options, GenerationOptions) else 0


def expected_signature(spec: ModelSpec) -> Signature:
    """Return what is known of a model's tensors before it is loaded."""
    options = check_options(spec)
    if isinstance(options, TensorOptions):
        return Signature(tuple(t.spec() for t in options.inputs), tuple(t.spec() for t in options.outputs))
    return ENGINES[engine_name(spec)].signature


def independent_rows(spec: ModelSpec) -> tuple[str, ...]:
    """Return the inputs whose rows are answered independently; none: a request is one whole."""
    if spec.cache is not None and spec.cache.rows is not None:
        return spec.cache.rows
    name = engine_name(spec)
    if name == "tensor" and spec.options.get("batched", True):
        return tuple(tensor.name for tensor in expected_signature(spec).inputs)
    return ENGINES[name].rows


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model as a transformers folder. Blocks; call it in a thread."""
    importlib.import_module("deployments.engines.gguf").convert(file, folder)


def set_up_process(threads: int | None) -> None:
    """Tell torch how many threads an operator may use, and the system which memory a replica keeps."""
    importlib.import_module("deployments.engines.runtime").set_up(threads)


def give_back() -> None:
    """Hand memory that nobody holds any more back to the system. Blocks; call it in a thread."""
    importlib.import_module("deployments.engines.runtime").give_back()


def run_measured(
    run: Callable[[Sequence[Item]], Sequence[Any]], items: Sequence[Item], device: str
) -> tuple[Sequence[Any], int | None]:
    """Run a batch (in the device thread); return its outputs and the bytes it took beside the weights, if known."""
    measured: tuple[Sequence[Any], int | None] = importlib.import_module("deployments.engines.peaks").run_measured(
        run, items, device
    )
    return measured


def is_usable(device: str) -> bool:
    """Return whether the device still works. Blocks; call it in a thread."""
    return bool(importlib.import_module("deployments.engines.runtime").is_usable(device))


def load_engine(path: Path, spec: ModelSpec, device: str) -> Engine:
    """Import the family of `spec` and load the model's files onto `device`. Blocks; call it in a thread.

    Raises:
        ModelUnavailable: `reason` says what stopped it.
    """
    module, _, name = ENGINES[engine_name(spec)].factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
        return cast(Engine, factory(path, spec, device))
    except ModelUnavailable:
        raise
    except Exception as exc:
        raise unavailable(spec, f"{type(exc).__name__}: {exc}") from exc
