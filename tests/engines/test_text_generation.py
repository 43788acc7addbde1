"""Generating engines against transformers' own `generate`: alone, together, joining late, preempted, cancelled."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from deployments.chunks import Finish
from deployments.engines.kv_table import BLOCK
from deployments.engines.text2text_generation import Text2TextGeneration
from deployments.engines.text_generation import TextGeneration
from deployments.errors import InputTooLong, InvalidInput, ModelUnavailable
from deployments.generation import Job, StepReport
from deployments.spec import ModelSpec
from deployments.types import InferRequest, text_array

PROMPTS = ["hello there", "a", "the quick brown fox jumps over", "xyz 123"]


def load(path: Path, kind: type[TextGeneration] = TextGeneration, **fields: Any) -> TextGeneration:
    task = "text-generation" if kind is TextGeneration else "text2text-generation"
    spec = ModelSpec.model_validate({"name": "g", "task": task, "source": {"path": str(path)}, **fields})
    return kind(path, spec, "cpu")


def request(*texts: str, **params: Any) -> InferRequest:
    return InferRequest("g", {"text": text_array(texts)}, params={"temperature": 0.0, "max_tokens": 12, **params})


def chat(*messages: dict[str, str], **params: Any) -> InferRequest:
    conversation = json.dumps(list(messages))
    return InferRequest("g", {"messages": text_array([conversation])}, params={"temperature": 0.0, **params})


class Run:
    """Steps an engine until its jobs are over, and keeps what they gave."""

    def __init__(self, engine: TextGeneration) -> None:
        self.engine = engine
        self.text: dict[int, str] = {}
        self.finish: dict[int, Finish | None] = {}
        self.reports: list[StepReport] = []
        self.n_open = 0

    def step(self, joining: Sequence[Job] = (), leaving: Sequence[Job] = ()) -> StepReport:
        self.n_open += len(joining) - len(leaving)
        report = self.engine.step(joining, leaving)
        self.reports.append(report)
        for delta in report.deltas:
            assert delta.error is None, delta.error
            key = id(delta.job)
            self.text[key] = self.text.get(key, "") + delta.text
            if delta.is_last:
                self.finish[key] = delta.finish
                self.n_open -= 1
        return report

    def all(self, jobs: Sequence[Job]) -> list[str]:
        self.step(jobs)
        for _ in range(2000):
            if not self.n_open:
                break
            self.step()
        return [self.text[id(job)] for job in jobs]


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Path]) -> TextGeneration:
    return load(tiny("llama"))


def expected(path: Path, prompt: str, n: int = 12, auto: Any = tf.AutoModelForCausalLM) -> str:
    model, tokenizer = auto.from_pretrained(path), tf.AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=n, do_sample=False, num_beams=1)[0]
    is_causal = auto is tf.AutoModelForCausalLM
    new = out[inputs["input_ids"].shape[1] :] if is_causal else out[1:]
    text: str = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-windowed"])
def test_together_gives_what_generate_gives_alone(name: str, tiny: Callable[[str], Path]) -> None:
    engine = load(tiny(name))
    engine.warm_up()
    texts = Run(engine).all(engine.prepare(request(*PROMPTS)))
    assert texts == [expected(tiny(name), prompt) for prompt in PROMPTS]
    assert engine.is_continuous is (name != "mistral-windowed")


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_decoder_models_give_what_generate_gives(name: str, tiny: Callable[[str], Path]) -> None:
    engine = load(tiny(name), Text2TextGeneration)
    engine.warm_up()
    texts = Run(engine).all(engine.prepare(request(*PROMPTS)))
    assert texts == [expected(tiny(name), p, auto=tf.AutoModelForSeq2SeqLM) for p in PROMPTS]


def test_joining_late_leaving_early_changes_nobodys_text(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("llama"))
    run = Run(engine)
    jobs = engine.prepare(request(*PROMPTS, ignore_eos=True, max_tokens=20))
    run.step([jobs[0], jobs[1]])
    run.step([jobs[2]])
    run.step(leaving=[jobs[0]])
    report = run.step([jobs[3]])
    assert report.n_running == 3
    while run.n_open:
        report = run.step()
    assert (report.n_running, report.cache_tokens) == (0, 0)
    alone = [Run(engine).all(engine.prepare(request(p, ignore_eos=True, max_tokens=20)))[0] for p in PROMPTS]
    assert [run.text[id(job)] for job in jobs[1:]] == alone[1:]
    assert alone[0].startswith(run.text[id(jobs[0])])


def test_long_prompts_are_computed_by_pieces_between_tokens(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("llama"), options={"prompt_tokens_per_step": 16})
    long = "all work and no play " * 6
    run = Run(engine)
    short_job = engine.prepare(request("hi", ignore_eos=True, max_tokens=30))[0]
    long_job = engine.prepare(request(long, ignore_eos=True))[0]
    run.step([short_job])
    joined = run.step([long_job])
    assert joined.prompt_tokens == 16
    assert [delta.job for delta in joined.deltas] == [short_job]
    while run.n_open:
        run.step()
    assert max(report.prompt_tokens for report in run.reports) <= 16
    assert run.text[id(long_job)] == Run(engine).all(engine.prepare(request(long, ignore_eos=True)))[0]


def test_a_full_cache_sends_the_youngest_back_and_nothing_is_lost(tiny: Callable[[str], Path]) -> None:
    per_token = 2 * 2 * 2 * 8 * 4
    engine = load(tiny("llama"), options={"cache_bytes": per_token * BLOCK * 4})
    run = Run(engine)
    jobs = engine.prepare(request(*PROMPTS, ignore_eos=True, max_tokens=90, temperature=1.0, seed=3))
    texts = run.all(jobs)
    assert sum(report.n_preempted for report in run.reports) > 0
    assert max(report.cache_tokens for report in run.reports) <= BLOCK * 4
    roomy = load(tiny("llama"))
    assert texts == Run(roomy).all(
        roomy.prepare(request(*PROMPTS, ignore_eos=True, max_tokens=90, temperature=1.0, seed=3))
    )


def test_a_seed_gives_the_same_text_in_any_company(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("llama"))
    wish = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": 7, "n": 2}
    alone = Run(engine).all(engine.prepare(request("once", **wish)))
    others = engine.prepare(request("upon", "a", "time", temperature=1.5))
    mine = engine.prepare(request("once", **wish))
    together = Run(engine).all([*others, *mine])[3:]
    assert together == alone
    assert alone[0] != alone[1]
    assert Run(engine).all(engine.prepare(request("once", **{**wish, "seed": 8}))) != alone


def test_stop_strings_end_a_sequence_and_are_not_shown(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("llama"))
    run = Run(engine)
    text = run.all(engine.prepare(request("hello there", ignore_eos=True, max_tokens=24)))[0]
    stop = text[6:9]
    stopped = Run(engine)
    jobs = engine.prepare(request("hello there", ignore_eos=True, max_tokens=24, stop=[stop]))
    assert stopped.all(jobs) == [text[: text.index(stop)]]
    assert stopped.finish[id(jobs[0])] is Finish.STOP
    assert run.finish[next(iter(run.finish))] is Finish.LENGTH


@pytest.mark.parametrize("prompt", ["hello", "Grüße, 🎈", "a"])
def test_the_tokens_of_log_probabilities_make_up_the_text_byte_by_byte(prompt: str, llama: TextGeneration) -> None:
    (job,) = llama.prepare(request(prompt, logprobs=1, max_tokens=40, ignore_eos=True, temperature=1.0, seed=1))
    text, spelled = "", b""
    report = llama.step([job], ())
    while True:
        for delta in report.deltas:
            text += delta.text
            spelled += b"".join(token.token for token in delta.logprobs)
        if not report.n_running:
            break
        report = llama.step((), ())
    assert b"\xef\xbf\xbd" not in spelled
    for name in (b"<s>", b"</s>", b"<unk>"):  # special tokens, part of no text
        spelled = spelled.replace(name, b"")
    assert spelled.decode(errors="replace") == text


def test_logprobs_penalties_and_biases(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("llama"))
    report = engine.step(engine.prepare(request("hi", logprobs=3, max_tokens=1)), ())
    (token,) = report.deltas[0].logprobs
    assert token.top[0] == (token.token, token.logprob)
    assert len(token.top) == 3
    assert sum(2.718281828**p for _, p in token.top) <= 1
    forced = Run(engine).all(engine.prepare(request("hi", logit_bias={"70": 100.0}, max_tokens=3, ignore_eos=True)))
    assert len(set(forced[0])) == 1
    bored = Run(engine).all(
        engine.prepare(request("hi", logit_bias={"70": 40.0}, frequency_penalty=2.0, max_tokens=60, ignore_eos=True))
    )
    assert len(set(bored[0])) > 1


def test_a_conversation_goes_through_the_models_template(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("llama"))
    (job,) = engine.prepare(chat({"role": "user", "content": "hello"}))
    decoded = tf.AutoTokenizer.from_pretrained(tiny("llama")).decode(job.prompt)
    assert decoded == "<s>user: hello</s><s>assistant: "
    with pytest.raises(InvalidInput, match="unknown role robot") as caught:
        engine.prepare(chat({"role": "robot", "content": "hello"}))
    assert caught.value.details["field"] == "messages"
    with pytest.raises(InvalidInput, match="no chat template"):
        load(tiny("gpt2")).prepare(chat({"role": "user", "content": "hello"}))


NO_CONVERSATIONS = [
    *("[]", "{}", "null", "1", '"hello"', "{", "[" * 5000, "[1]", "[null]", "[[]]"),
    '[[{"role": "user", "content": "a"}]]',
    *('[{"content": "a"}]', '[{"role": 1, "content": "a"}]', '[{"role": "user", "content": 2}]', '[{"role": "user"}]'),
]


@pytest.mark.parametrize("conversation", NO_CONVERSATIONS)
def test_what_is_no_conversation_is_refused(conversation: str, llama: TextGeneration) -> None:
    with pytest.raises(InvalidInput, match=r"^messages: (must be|is not)") as caught:
        llama.prepare(InferRequest("g", {"messages": text_array([conversation])}))
    assert caught.value.details["field"] == "messages"


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ foo() }}"])
def test_a_template_that_fails_says_so(template: str, tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("llama"), options={"chat_template": template})
    with pytest.raises(InvalidInput, match="chat template"):
        engine.prepare(chat({"role": "user", "content": "hello"}))


def test_a_template_that_is_none_is_found_out_at_load(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ModelUnavailable, match=r"options\.chat_template: line 1: Expected an expression"):
        load(tiny("llama"), options={"chat_template": "{% if %}"})


@pytest.mark.parametrize("token", ["9" * 5000, "-1", "a", "", "1.5", "261"])
def test_a_bias_for_what_is_no_token_is_refused(token: str, llama: TextGeneration) -> None:
    with pytest.raises(InvalidInput) as caught:
        llama.prepare(request("a", logit_bias={token: 1.0}))
    assert caught.value.details["field"] == "logit_bias"
    assert len(caught.value.message) < 300


def test_what_no_tokens_could_hold_is_refused_before_it_is_cut_into_tokens(
    llama: TextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, **__: Any) -> Any:
        raise AssertionError("seconds of the thread that all prompts share")

    monkeypatch.setattr(type(llama._prompts._tokenizer), "__call__", slow)
    with pytest.raises(InputTooLong, match=r"text\[1\] has 1000000 characters") as caught:
        llama.prepare(request("a", "b" * 1_000_000))
    assert caught.value.details["field"] == "text[1]"
    with pytest.raises(InputTooLong, match="messages has 10000"):
        llama.prepare(chat({"role": "user", "content": "b" * 1_000_000}))


def test_what_cannot_fit_is_refused_by_name(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("llama"), max_tokens=32)
    with pytest.raises(InputTooLong, match=r"text\[0\] has 40 tokens; this model takes 31"):
        engine.prepare(request("a" * 40))
    with pytest.raises(InputTooLong, match="ask for at most 22"):
        engine.prepare(request("a" * 10, max_tokens=23))
    assert engine.prepare(InferRequest("g", {"text": text_array(["a" * 10])}))[0].sampling.max_tokens == 22
    for params, field in (({"temperature": 3.0}, "temperature"), ({"stop": [""]}, "stop"), ({"magic": 1}, "magic")):
        with pytest.raises(InvalidInput) as caught:
            engine.prepare(request("a", **params))
        assert caught.value.details["field"] == field


def test_a_cache_that_finds_no_memory_fails_who_runs_and_nobody_later(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny("llama"))
    alone = Run(engine).all(engine.prepare(request("hello", ignore_eos=True, max_tokens=80)))
    run = Run(engine)
    (job,) = engine.prepare(request("a", ignore_eos=True, max_tokens=200))
    run.step([job])
    zeros, n_left = torch.zeros, 2

    def scarce(*sizes: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise RuntimeError("not enough memory: you tried to allocate")
        return zeros(*sizes, **kwargs)

    monkeypatch.setattr("deployments.engines.kv_table.torch.zeros", scarce)
    more = engine.prepare(request(*PROMPTS * 4, ignore_eos=True, max_tokens=2))
    with pytest.raises(RuntimeError, match="not enough memory"):
        engine.step(more, ())
    monkeypatch.undo()
    engine.step((), [job, *more])  # as the stepper does
    assert Run(engine).all(engine.prepare(request("hello", ignore_eos=True, max_tokens=80))) == alone


def test_a_row_without_numbers_fails_alone(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(tiny("llama"))
    core = engine._batch._core
    start = core.start

    def poisoned(rows: Any, first: int, budget: int) -> torch.Tensor | None:
        logits = start(rows, first, budget)
        assert logits is not None
        logits = logits.clone()
        logits[1] = float("nan")
        return logits

    monkeypatch.setattr(core, "start", poisoned)
    jobs = engine.prepare(request(*PROMPTS))
    first = engine.step(jobs, ())
    assert [delta.error is not None for delta in first.deltas] == [False, True, False, False]
    assert engine.step((), ()).n_running == 3
