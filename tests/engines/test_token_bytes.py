"""Single tokens as bytes, by three kinds of tokenizers."""

from pathlib import Path

import pytest
from tiny_models import bytelevel_tokenizer, wordpiece_tokenizer
from tokenizers import Tokenizer, decoders, models

from deployments.engines.token_bytes import token_bytes

TEXT = "Grüße — 🎈 a  b\n"


def test_byte_level(tmp_path: Path) -> None:
    bytelevel_tokenizer(tmp_path, is_framed=False)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    spell, ids = token_bytes(tokenizer), tokenizer.encode(TEXT).ids
    assert len(ids) == len(TEXT.encode())
    assert b"".join(map(spell, ids)) == TEXT.encode()
    assert spell(tokenizer.token_to_id("</s>")) == b"</s>"
    assert spell(10**6) == b""


def test_byte_fallback() -> None:
    pieces = ["\u2581a", "b", "\u2581", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    spell = token_bytes(tokenizer)
    assert [spell(i) for i in (0, 1, 2, 3 + 0xE2)] == [b" a", b"b", b" ", b"\xe2"]


@pytest.mark.parametrize("word", ["the", "##a"])
def test_word_pieces(tmp_path: Path, word: str) -> None:
    wordpiece_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert token_bytes(tokenizer)(tokenizer.token_to_id(word)).strip(b"#") == word.strip("#").encode()
