"""Cuts texts that are too long as their tokenizer would, without setting anything in it.

transformers sets truncation in the tokenizer itself, which the event loop and the text thread share: a thread that
cuts would make the other one's texts short, or let its own pass uncut. Called by `TextTokenizer`.
"""

from typing import Any, Literal, TypeAlias

Cut: TypeAlias = Literal["longest_first", "only_first"]
Side: TypeAlias = Literal["left", "right"]


def cut(tokenizer: Any, limit: int, how: Cut, side: Side, text: str, pair: str | None = None) -> Any:
    """Return the `tokenizers.Encoding` of a text, or of a pair, cut to `limit` tokens, special ones included.

    `side` is where tokens go: from the left, the end of a text is kept.

    Where `only_first` may be cut, something of it has to be left: the caller has checked that. `sequence_ids` of a cut
    pair mean nothing.
    """
    backend = tokenizer.backend_tokenizer
    room = limit - tokenizer.num_special_tokens_to_add(pair=pair is not None)
    first = backend.encode(text, add_special_tokens=False)
    if pair is None:
        first.truncate(room, direction=side)
        return backend.post_process(first)
    second = backend.encode(pair, add_special_tokens=False)
    n_second = len(second.ids)
    n_first = room - n_second if how == "only_first" else longest_first(len(first.ids), n_second, room)
    first.truncate(n_first, direction=side)
    second.truncate(min(n_second, room - n_first), direction=side)
    return backend.post_process(first, second)


def longest_first(n_first: int, n_second: int, room: int) -> int:
    """Return how many tokens the first of two texts keeps when the longer one is cut, and both where it is not enough.

    As huggingface/tokenizers shares them: of two that are cut, the one that was longer gets the odd token.
    """
    shorter = min(n_first, n_second)
    if n_first + n_second <= room:
        return n_first
    if shorter <= room // 2:
        return n_first if n_first == shorter else room - shorter
    return room // 2 if n_first <= n_second else room - room // 2
