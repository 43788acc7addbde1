"""One fast tokenizer for all models whose tokenizer files are the same, byte for byte.

Reading one is half of what is left of a load, and each takes many times its file's memory. Nobody sets anything in one
that is shared: `TextTokenizer` cuts and pads by itself. Kept as long as a model has it; the last ones used, while their
files are small, are kept a while longer, so that a model that comes back finds its own. Called by `TextTokenizer`.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from transformers import AutoTokenizer

from deployments.engines.loading import OFFLINE

_KEPT_BYTES = 8 * 2**20  # of files; a tokenizer takes some ten times that in memory
_ALL_IN = "tokenizer.json"  # a fast tokenizer, whole; without it, who knows what is read
_PARTS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_templ*",
)
_OF_CONFIG = ("model_type", "tokenizer_class", "transformers_version", "auto_map")  # what is read of config.json

_IN_USE: WeakValueDictionary[str, Any] = WeakValueDictionary()
_LATEST: OrderedDict[str, tuple[int, Any]] = OrderedDict()  # with the bytes of its files
_LOCK = threading.Lock()  # of both; also held while one is read, so that two loads at once share it


def tokenizer_in(folder: Path) -> Any:
    """Return the tokenizer of a transformers folder, which may be another model's, too."""
    if not (folder / _ALL_IN).is_file():
        return _read(folder)
    digest, n_bytes = hashlib.sha256(), 0
    for name, content in _parts(folder):
        digest.update(f"\n{name} {len(content)}\n".encode() + content)
        n_bytes += len(content)
    key = digest.hexdigest()
    with _LOCK:
        found = _IN_USE.get(key)
        if found is None:
            found = _IN_USE[key] = _read(folder)
        _keep(key, n_bytes, found)
    return found


def _read(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, **OFFLINE)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _parts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield everything that decides what a tokenizer is."""
    for file in sorted({file for pattern in _PARTS for file in folder.glob(pattern) if file.is_file()}):
        yield file.name, file.read_bytes()
    config = folder / "config.json"
    if config.is_file():
        said = json.loads(config.read_text())
        yield config.name, json.dumps([said.get(name) for name in _OF_CONFIG]).encode()


def _keep(key: str, n_bytes: int, tokenizer: Any) -> None:
    """Keep the latest whose files take `_KEPT_BYTES` together."""
    _LATEST[key] = n_bytes, tokenizer
    _LATEST.move_to_end(key)
    while sum(size for size, _ in _LATEST.values()) > _KEPT_BYTES:
        _LATEST.popitem(last=False)
