"""Tokenising is the same from every thread, and cutting is what the tokenizer itself would do."""

import threading
from pathlib import Path
from typing import Any, Literal

import pytest
from engine_calls import load
from tiny_models import build

from deployments.engines.cutting import Side
from deployments.engines.tokens import TextTokenizer

WORDS = "the cat sat on a mat and the dog ran to the house of a man"
LONG = " ".join([WORDS] * 40)


@pytest.fixture(params=["sentence-bert", "roberta-masked"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> TextTokenizer:
    task = {"sentence-bert": "feature-extraction", "roberta-masked": "fill-mask"}[request.param]
    engine: Any = load(build(request.param, tmp_path), task)
    found: TextTokenizer = engine._tokenizer
    return found


def test_threads_that_cut_and_threads_that_do_not_leave_each_other_alone(tokenizer: TextTokenizer) -> None:
    """The event loop tokenises small requests while the text thread does large ones."""
    faults: list[BaseException] = []
    done = threading.Event()

    def cuts() -> None:
        try:
            for _ in range(150):
                found = tokenizer.encode([LONG] * 4, "text", truncate="right")
                assert {len(encoding.ids) for encoding in found} == {tokenizer.limit}
        except BaseException as exc:
            faults.append(exc)
        finally:
            done.set()

    thread = threading.Thread(target=cuts)
    thread.start()
    want = tokenizer.encode(["the cat"], "text")[0].ids
    while not done.is_set() and not faults:
        assert tokenizer.encode(["the cat"], "text")[0].ids == want
        assert len(tokenizer.spell([LONG], special=True)[0].ids) > tokenizer.limit
    thread.join()
    assert not faults, faults


LONGEST = [(LONG, None), (LONG, LONG), (LONG, "the dog"), ("the dog", LONG), (WORDS, LONG), (LONG, "")]
FIRST = [(LONG, None), (LONG, "the dog"), (LONG, "")]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("cut", "first", "second"),
    [*(("longest_first", *pair) for pair in LONGEST), *(("only_first", *pair) for pair in FIRST)],
    ids=range(len(LONGEST) + len(FIRST)),
)
def test_cutting_is_what_the_tokenizer_itself_would_do(
    tokenizer: TextTokenizer,
    cut: Literal["longest_first", "only_first"],
    side: Side,
    first: str,
    second: str | None,
) -> None:
    backend = tokenizer.tokenizer
    backend.truncation_side = side
    seconds = None if second is None else [second]
    want = backend([first], seconds, truncation=cut, max_length=tokenizer.limit, verbose=False).encodings[0]
    backend.backend_tokenizer.no_truncation()
    (got,) = tokenizer.encode([first], "text", seconds, truncate=side, cut=cut)
    for name in ("ids", "type_ids", "offsets", "special_tokens_mask"):
        assert getattr(got, name) == getattr(want, name), name
