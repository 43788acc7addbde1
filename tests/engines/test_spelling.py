"""Speller: whatever the tokens and stop strings, the pieces make up the text as far as the first stop."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from deployments.engines.spelling import Speller


def decode(tokens: Sequence[int]) -> str:
    """Take each token for a byte."""
    return bytes(tokens).decode(errors="replace")


def spelt(tokens: Sequence[int], stops: Sequence[str]) -> tuple[str, bool]:
    speller = Speller(decode, stops)
    text = ""
    for token in tokens:
        piece, is_stopped = speller.push(token)
        text += piece
        if is_stopped:
            return text, True
    return text + speller.flush(), False


@given(
    st.text(alphabet="abñ猫\n", max_size=40), st.lists(st.text(alphabet="abñ猫\n", min_size=1, max_size=4), max_size=3)
)
def test_pieces_make_up_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    ends = [text.index(stop) for stop in stops if stop in text]
    found, is_stopped = spelt(text.encode(), stops)
    # Of two stops that overlap, the one that is complete first ends the text.
    firsts = [text.index(stop) + len(stop) for stop in stops if stop in text]
    complete = text[: min(firsts)] if firsts else text
    begins = [complete.index(stop) for stop in stops if stop in complete]
    assert is_stopped is bool(ends)
    assert found == (text[: min(begins)] if ends else text)


@given(st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_text_hold_nothing_up(tokens: list[int]) -> None:
    found, _ = spelt(tokens, ())
    assert found.replace("\N{REPLACEMENT CHARACTER}", "") in (
        decode(tokens).replace("\N{REPLACEMENT CHARACTER}", ""),
        found.replace("\N{REPLACEMENT CHARACTER}", ""),
    )
    assert len(found) >= len(decode(tokens).replace("\N{REPLACEMENT CHARACTER}", ""))


def test_what_may_be_a_stop_is_held_back_and_given_out_in_the_end() -> None:
    speller = Speller(decode, ["END"])
    assert speller.push(ord("E")) == ("", False)
    assert speller.push(ord("N")) == ("", False)
    assert speller.push(ord("x")) == ("ENx", False)
    assert speller.push(ord("E")) == ("", False)
    assert speller.flush() == "E"
