"""A generation request's texts or conversations to jobs: tokens, how to sample, how much may be generated.

Called by the generating engines in the pool's text thread.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from jinja2 import TemplateSyntaxError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from deployments.engines.base import unavailable
from deployments.engines.loading import OFFLINE
from deployments.engines.options import GenerationOptions
from deployments.engines.params import parse_params
from deployments.engines.spelling import Decode
from deployments.engines.texts import read_texts
from deployments.engines.token_bytes import token_bytes
from deployments.errors import InputTooLong, InvalidInput
from deployments.generation import GenerateParams, Job, Sampling
from deployments.spec import ModelSpec
from deployments.types import InferRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt and the field of the request it came from."""

    field: str
    ids: list[int]


class Prompts:
    """A model's tokenizer, chat template and limits. `limit` counts prompt and generated tokens together."""

    def __init__(self, path: Path, spec: ModelSpec, options: GenerationOptions, vocabulary: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, use_fast=True, **OFFLINE)
        if not self._tokenizer.is_fast:
            raise unavailable(spec, "it has no fast tokenizer (tokenizer.json); convert it with transformers first")
        if options.chat_template is not None:
            self._tokenizer.chat_template = options.chat_template
            _check_template(self._tokenizer, spec)
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))
        self._spec = spec
        self._options = options
        self._vocabulary = vocabulary
        self.limit = 0  # set by the engine, which knows the model and its cache

    @property
    def end_id(self) -> int | None:
        """The tokenizer's end-of-sequence token."""
        end: int | None = self._tokenizer.eos_token_id
        return end

    def decoder(self) -> Decode:
        """Return what turns tokens into text, special tokens left out; safe in another thread."""
        # NOTE: a copy, for the device thread: encoding may lock the original.
        own = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        return lambda ids: own.decode(list(ids), skip_special_tokens=True)

    def token_bytes(self) -> Callable[[int], bytes]:
        """Return what gives the bytes of a single token; safe in another thread, too."""
        return token_bytes(Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str()))

    def jobs(self, request: InferRequest, *, shares_limit: bool = True) -> list[Job]:
        """Return one job a prompt and sequence; `shares_limit`: prompt and generated tokens have one limit together.

        Raises:
            InvalidInput: a text, a conversation or a parameter is wrong.
            InputTooLong: a prompt, or what it asks for beside it, is over the model's limit.
        """
        params = parse_params(GenerateParams, request.params)
        prompts = self._prompts(request)
        jobs: list[Job] = []
        for prompt in prompts:
            max_tokens = self._max_tokens(prompt, params.max_tokens, shares_limit=shares_limit)
            sampling = self._sampling(params, max_tokens)
            for _ in range(params.n):
                jobs.append(Job(prompt.ids, sampling, len(jobs)))
        return jobs

    def _prompts(self, request: InferRequest) -> list[Prompt]:
        given = [name for name in ("text", "messages") if name in request.inputs]
        if len(given) != 1:
            raise InvalidInput("give either 'text' or 'messages', and not both", field="inputs")
        texts = read_texts(request.inputs, given[0])
        fields = [f"{given[0]}[{i}]" for i in range(len(texts))]
        if given[0] == "messages":
            fields = (
                fields if len(texts) > 1 else ["messages"]
            )  # a chat's only conversation: messages[0] is its first turn
            texts = list(map(self._conversation, texts, fields))
        for text, field in zip(texts, fields, strict=True):
            self._check_length(text, field)
        # A chat template writes the special tokens itself.
        encoded = self._tokenizer(texts, add_special_tokens=given[0] == "text", verbose=False)["input_ids"]
        prompts = list(map(Prompt, fields, encoded))
        for prompt in prompts:
            if not prompt.ids:
                raise InvalidInput(f"{prompt.field} is empty: it has no tokens", field=prompt.field)
        return prompts

    def _check_length(self, text: str, field: str) -> None:
        """Refuse at once what tokens could never hold: a megabyte takes a second of the thread that all share."""
        if len(text) > self.limit * self._longest_token:
            raise InputTooLong(
                f"{field} has {len(text)} characters, more than the {self.limit} tokens this model takes can hold. "
                "Shorten it",
                field=field,
                n_characters=len(text),
                max_tokens=self.limit,
            )

    def _conversation(self, text: str, field: str) -> str:
        if not self._tokenizer.chat_template:
            raise InvalidInput(
                f"model {self._spec.name!r} has no chat template; send it a prompt as text", field="messages"
            )
        messages = _messages(text, field)
        try:
            rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as exc:  # whatever a template does to an input, its request alone has failed
            raise InvalidInput(f"{field}: the model's chat template refuses it: {exc}"[:300], field=field) from None
        return rendered

    def _max_tokens(self, prompt: Prompt, wanted: int | None, *, shares_limit: bool) -> int:
        n_prompt = len(prompt.ids)
        room = self.limit - n_prompt if shares_limit else self.limit
        if n_prompt >= self.limit:
            raise InputTooLong(
                f"{prompt.field} has {n_prompt} tokens; this model takes {self.limit - shares_limit}. Shorten it",
                field=prompt.field,
                n_tokens=n_prompt,
                max_tokens=self.limit - shares_limit,
            )
        if wanted is not None and wanted > room:
            raise InputTooLong(
                f"max_tokens: {wanted} beside {prompt.field} of {n_prompt} tokens is over the {self.limit} tokens this "
                f"model can hold; ask for at most {room}",
                field="max_tokens",
                n_tokens=n_prompt,
                max_tokens=room,
            )
        return wanted if wanted is not None else min(room, self._options.max_new_tokens)

    def _sampling(self, params: GenerateParams, max_tokens: int) -> Sampling:
        chosen = self._options.defaults.model_dump()
        chosen.update({name: value for name in chosen if (value := getattr(params, name)) is not None})
        bias = {int(token): value for token, value in params.logit_bias.items()}
        if any(token >= self._vocabulary for token in bias):
            raise InvalidInput(f"logit_bias: token ids are below {self._vocabulary}", field="logit_bias")
        return Sampling(
            max_tokens=max_tokens,
            **chosen,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=bias,
            seed=params.seed,
            stop=tuple(params.stop),
            logprobs=params.logprobs,
            ignore_eos=params.ignore_eos,
        )


def _messages(text: str, field: str) -> list[dict[str, Any]]:
    """Read a conversation as far as every chat template wants it; the rest is the template's own affair."""
    try:
        messages = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"{field}: is not JSON: {exc}", field=field) from None
    is_right = isinstance(messages, list) and messages and all(map(_is_message, messages))
    if not is_right:
        wanted = 'a JSON list of messages, each {"role": "…", "content": "…"}, at least one'
        raise InvalidInput(f"{field}: must be {wanted}", field=field)
    return messages


def _is_message(message: object) -> bool:
    if not isinstance(message, dict):
        return False
    return isinstance(message.get("role"), str) and isinstance(message.get("content"), str | list)


def _check_template(tokenizer: Any, spec: ModelSpec) -> None:
    """Raise ModelUnavailable if the template cannot be read; what else it does with a made-up input says nothing."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except TemplateSyntaxError as exc:
        raise unavailable(spec, f"options.chat_template: line {exc.lineno}: {exc.message}") from None
    except Exception:
        return


def cache_tokens(cache_bytes: int, bytes_per_token: int) -> int:
    """Return how many tokens a cache of this size holds."""
    return math.floor(cache_bytes / max(bytes_per_token, 1))


def end_ids(config: Any, *more: int | None) -> frozenset[int]:
    """Return the tokens at which a sequence ends, from a generation config and the tokenizer."""
    configured = config.eos_token_id
    ids: Sequence[int | None] = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, *more) if i is not None)
