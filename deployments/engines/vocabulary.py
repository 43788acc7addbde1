"""The work of a model's tokenizer alone, without the model: texts to tokens, and token ids to text.

Mixed into the engines over text; called by `deployments.loaded` in the text thread. `tokens` is a JSON array a text, of
{id, text, special, start, stop}: characters of the text (its prompt included), null for special tokens.
"""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from deployments.engines.params import parse_params
from deployments.engines.texts import read_texts
from deployments.engines.tokens import Encoding, TextTokenizer
from deployments.errors import InputTooLong, InvalidInput
from deployments.spec import Strict
from deployments.types import InferRequest, Tensors, text_array

MAX_TOKENS = 2**18  # a request: some 20 MB of JSON


class TokenizeParams(Strict):
    """Parameters of TOKENIZE."""

    add_special_tokens: bool = True
    prompt_name: str | None = Field(default=None, description="one of the model's own prompts, put before each text")


class DecodeParams(Strict):
    """Parameters of DECODE."""

    skip_special_tokens: bool = True


class Vocabulary:
    """What an engine needs for `deployments.engines.base.Tokenizing`."""

    _tokenizer: TextTokenizer

    def tokenize(self, request: InferRequest) -> Tensors:
        """Return `tokens` BYTES [n] of `text` BYTES [n]; long texts are not cut.

        Raises:
            InputTooLong: all texts together have more than `MAX_TOKENS`.
            InvalidInput: a text is not UTF-8, or there is no prompt of that name.
        """
        params = parse_params(TokenizeParams, request.params)
        texts = self._spelled(read_texts(request.inputs, "text"), params.prompt_name)
        encodings = self._tokenizer.spell(texts, special=params.add_special_tokens)
        n_tokens = sum(len(encoding.ids) for encoding in encodings)
        if n_tokens > MAX_TOKENS:
            raise InputTooLong(
                f"text has {n_tokens} tokens in all, at most {MAX_TOKENS} are told at a time; send fewer texts",
                field="text",
                n_tokens=n_tokens,
                max_tokens=MAX_TOKENS,
            )
        return {"tokens": text_array([_json(text, encoding) for text, encoding in zip(texts, encodings, strict=True)])}

    def decode(self, request: InferRequest) -> Tensors:
        """Return `text` BYTES [n] of `ids` BYTES [n], each numbers with spaces between.

        Raises:
            InvalidInput: one is no id of this vocabulary.
        """
        params = parse_params(DecodeParams, request.params)
        rows = [self._tokenizer.ids(row, f"ids[{i}]") for i, row in enumerate(read_texts(request.inputs, "ids"))]
        return {"text": text_array(self._tokenizer.decode(rows, skip_special=params.skip_special_tokens))}

    def _spelled(self, texts: Sequence[str], prompt_name: str | None) -> list[str]:
        """Return the texts as the model's tokenizer gets them."""
        if prompt_name is not None:
            raise InvalidInput(f"prompt_name: this model has no prompt {prompt_name!r}", field="prompt_name")
        return list(texts)


def _json(text: str, encoding: Encoding) -> str:
    rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
    return json.dumps([_token(text, *row) for row in rows], ensure_ascii=False, separators=(",", ":"))


def _token(text: str, number: int, word: str, is_special: int, offsets: tuple[int, int]) -> dict[str, Any]:
    if is_special:
        return {"id": number, "text": word, "special": True, "start": None, "stop": None}
    start, stop = offsets
    return {"id": number, "text": text[start:stop], "special": False, "start": start, "stop": stop}
