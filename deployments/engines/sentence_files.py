"""What a sentence-transformers folder says of itself: pooling, normalisation, token limit, prompts.

Read by `SentenceEmbedding`. Pure: JSON in, a dataclass out. Parts that would change the vectors and are not
supported are refused, never passed over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Pooling: TypeAlias = Literal["mean", "cls", "max", "last"]
_POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",  # newer files: `pooling_mode: mean`
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class SentenceFiles:
    """How a model's token vectors become one vector."""

    folder: Path  # where the transformer's own files are
    pooling: Pooling = "mean"
    normalize: bool = False
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""

    def prompt(self, *names: str) -> str:
        """Return the first of the named prompts that the model has, or its default one."""
        return next((self.prompts[name] for name in names if name in self.prompts), self.default_prompt)


def read_sentence_files(path: Path, pooling: Pooling | None = None) -> SentenceFiles:
    """Read `modules.json` and what it points to; a folder without one is a plain transformer.

    `pooling` takes the place of what the files say.

    Raises:
        ValueError: the model has a part that is not supported; the message names it.
    """
    modules = _read(path / "modules.json", [])
    folders = {module["type"].rpartition(".")[2]: path / module["path"] for module in modules}
    odd = sorted(set(folders) - {"Transformer", "Pooling", "Normalize"})
    if odd:
        raise ValueError(f"modules.json: module {odd[0]} is not supported; use engine: custom")
    pooler = _read(folders["Pooling"] / "config.json", {}) if "Pooling" in folders else {}
    folder = folders.get("Transformer", path)
    limits = _read(folder / "sentence_bert_config.json", {})
    prompting = _read(path / "config_sentence_transformers.json", {})
    prompts = {name: text for name, text in (prompting.get("prompts") or {}).items() if text}
    if prompts and pooler.get("include_prompt") is False:
        raise ValueError("1_Pooling/config.json: include_prompt false is not supported; use engine: custom")
    return SentenceFiles(
        folder=folder,
        pooling=pooling or _pooling(pooler),
        normalize="Normalize" in folders,
        max_tokens=limits.get("max_seq_length"),
        lower_case=bool(limits.get("do_lower_case")),
        prompts=prompts,
        default_prompt=prompts.get(prompting.get("default_prompt_name") or "", ""),
    )


def _pooling(config: dict[str, Any]) -> Pooling:
    given = config.get("pooling_mode")
    on = ([given] if isinstance(given, str) else given) or [
        key for key, value in config.items() if key.startswith("pooling_mode_") and value is True
    ]
    modes = [_POOLINGS.get(key) for key in on]
    if not on:
        return "mean"
    if len(modes) > 1 or modes[0] is None:
        raise ValueError(f"pooling {'+'.join(on)} is not supported; set options.pooling, or use engine: custom")
    return modes[0]


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else default
