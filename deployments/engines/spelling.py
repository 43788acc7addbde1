"""Generated tokens to text, as they come: whole characters only, and nothing that may belong to a stop string.

One `Speller` a sequence, called by the generating engines in the device thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # how a decoder shows the first bytes of a character
_MAX_PARTS = 8  # tokens a character may come in; beyond, its bytes are none

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Spelled:
    """How a tokenizer writes tokens: several together as text, one alone as bytes."""

    text: Decode
    token: Callable[[int], bytes]


class Speller:
    """The text of one sequence."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = stops
        self._tokens: list[int] = []
        self._start = 0  # decoding begins here: a token's text can depend on the one before it
        self._read = 0  # tokens whose text has been taken
        self._shown = ""  # text of tokens[start:read]
        self._held = ""  # may be the beginning of a stop string

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token; return the text that is certain now, and whether a stop string has been met."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._start :])
        may_grow = text.endswith(_UNFINISHED) and len(self._tokens) - self._read < _MAX_PARTS
        if len(text) <= len(self._shown) or may_grow:
            return "", False
        return self._emit(self._advance(text))

    def flush(self) -> str:
        """Return what was held back, now that nothing follows."""
        text = self._decode(self._tokens[self._start :])
        rest, stopped = self._emit(self._advance(text))
        held, self._held = self._held, ""
        return rest if stopped else rest + held

    def _advance(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._start, self._read = self._read, len(self._tokens)
        self._shown = self._decode(self._tokens[self._start :])
        return new

    def _emit(self, new: str) -> tuple[str, bool]:
        text = self._held + new
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self._held = ""
            return text[: min(places)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
