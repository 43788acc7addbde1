"""What a single token stands for, as bytes: those of a text make up its bytes, where a character takes several, too.

A tokenizer's own decoder shows part of a character as U+FFFD and leaves spaces out at the beginning. Used by
`text_generation` for log probabilities, in the device thread.
"""

import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


def token_bytes(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """Return what gives each token's bytes."""
    added = {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items()}
    is_byte_level = "ByteLevel" in str(tokenizer.decoder)
    letters = _byte_letters()

    def spell(token: int) -> bytes:
        if token in added:
            return added[token].encode()
        written = tokenizer.id_to_token(token)
        if written is None:  # the vocabulary may be padded beyond what the tokenizer knows
            return b""
        if is_byte_level and all(letter in letters for letter in written):
            return bytes(letters[letter] for letter in written)
        if found := _BYTE.fullmatch(written):
            return bytes.fromhex(found[1])
        if _SPACE in written:
            return written.replace(_SPACE, " ").encode()
        text: Any = tokenizer.decode([token], skip_special_tokens=False)
        return str(text).encode()

    return spell


def _byte_letters() -> dict[str, int]:
    """Return the letters by which byte-level tokenizers write bytes: printable ones as they are, others from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
