"""LoRA adapters: each row speaks as a model with its adapter merged in would, whoever else is in the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from tiny_models import adapter_folder

from deployments.chunks import collect
from deployments.engines.lora import LoraAdapter
from deployments.engines.text_generation import TextGeneration
from deployments.errors import ModelUnavailable
from deployments.generation import Job
from deployments.replica import PoolReplica
from deployments.spec import ModelSpec, PoolArgs
from deployments.types import InferRequest, ModelState, text_array

WISH: dict[str, Any] = {"temperature": 0.0, "max_tokens": 10, "ignore_eos": True}


def entry(name: str, path: Path, **fields: Any) -> dict[str, Any]:
    return {"name": name, "task": "text-generation", "source": {"path": str(path)}, **fields}


def spec(name: str, path: Path, **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate(entry(name, path, **fields))


def merged_text(base: Path, adapter: Path, prompt: str) -> str:
    model, tokenizer = tf.AutoModelForCausalLM.from_pretrained(base), tf.AutoTokenizer.from_pretrained(base)
    layers = LoraAdapter(adapter, spec("a", adapter, base="b:1"), "cpu").layers
    for name, layer in layers.items():
        model.get_submodule(name).weight.data += layer.up @ layer.down
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=10, min_new_tokens=10, do_sample=False)[0]
    text: str = tokenizer.decode(out[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def ask(*texts: str) -> InferRequest:
    return InferRequest("g", {"text": text_array(texts)}, params=WISH)


def run(engine: TextGeneration, jobs: list[Job]) -> list[str]:
    texts = {id(job): "" for job in jobs}
    report = engine.step(jobs, ())
    while True:
        for delta in report.deltas:
            assert delta.error is None, delta.error
            texts[id(delta.job)] += delta.text
        if not report.n_running:
            return list(texts.values())
        report = engine.step((), ())


def test_rows_of_a_batch_have_each_its_own_adapter(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    base = tiny("llama")
    folders = [adapter_folder(tmp_path / "one", 1), adapter_folder(tmp_path / "two", 2)]
    adapters = [LoraAdapter(folder, spec("a", folder, base="b:1"), "cpu") for folder in folders]
    engine = TextGeneration(base, spec("b", base), "cpu")
    plain = run(engine, engine.prepare(ask("hello", "you")))
    jobs = engine.prepare(ask("hello", "you", "hello", "you", "hello"))
    for job, adapter in zip(jobs, (None, adapters[0], adapters[1], None, adapters[0]), strict=True):
        if adapter is not None:
            engine.check_adapter(adapter)
        job.adapter = adapter
    texts = run(engine, jobs)
    assert [texts[0], texts[3]] == plain
    assert texts[1] == merged_text(base, folders[0], "you")
    assert texts[2] == merged_text(base, folders[1], "hello")
    assert texts[4] == merged_text(base, folders[0], "hello")
    assert len({texts[0], texts[2], texts[4]}) == 3


def test_an_adapter_of_another_model_is_refused_before_it_joins(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    base = tiny("llama")
    engine = TextGeneration(base, spec("b", base), "cpu")
    wrong = adapter_folder(tmp_path / "wrong", 1, out=48)
    with pytest.raises(ModelUnavailable, match="another size"):
        engine.check_adapter(LoraAdapter(wrong, spec("a", wrong, base="b:1"), "cpu"))
    dora = adapter_folder(tmp_path / "dora", 1, use_dora=True)
    with pytest.raises(ModelUnavailable, match="use_dora True is not served"):
        LoraAdapter(dora, spec("a", dora, base="b:1"), "cpu")
    with pytest.raises(ModelUnavailable, match="adapter_config"):
        LoraAdapter(base, spec("a", base, base="b:1"), "cpu")


async def test_a_pool_keeps_the_base_once_and_evicts_adapters_like_models(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny("llama")
    folders = {name: adapter_folder(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "c"))}
    weights = TextGeneration(base, spec("base", base, options={"cache_bytes": "1MiB"}), "cpu").size_bytes()
    one = LoraAdapter(folders["a"], spec("a", folders["a"], base="base:1"), "cpu").size_bytes()
    replica = PoolReplica(PoolArgs(budget_bytes=weights + 2 * one + 10, cache_dir=str(tmp_path / "cache")))
    models = [entry("base", base, options={"cache_bytes": "1MiB"})]
    models += [entry(name, folder, base="base:1") for name, folder in folders.items()]
    replica.configure({"models": models})
    for name in ("a", "b", "c", "a"):
        answer = await collect(replica.stream(f"{name}:1", ask("hello")))
        assert (answer.model, answer.outputs["text"][0].decode()) == (name, merged_text(base, folders[name], "hello"))
        assert replica.status().resident_bytes <= weights + 2 * one + 10
    plain = await collect(replica.stream("base:1", ask("hello")))
    assert plain.outputs["text"][0].decode() != merged_text(base, folders["a"], "hello")
    samples = [s for metric in replica.collect() for s in metric.samples]
    loads = {s.labels["model"]: s.value for s in samples if s.name == "model_endpoint_loads_total"}
    unloads = {s.labels["model"]: s.value for s in samples if s.name == "model_endpoint_unloads_total"}
    assert loads["base"] == 1
    assert "base" not in unloads
    assert sum(unloads.values()) >= 1
    await replica.aclose()


async def test_an_adapter_that_does_not_fit_its_base_says_so_where_operators_look(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    wrong, right = adapter_folder(tmp_path / "wrong", 1, out=48), adapter_folder(tmp_path / "right", 1)
    replica = PoolReplica(PoolArgs(budget_bytes=1 << 30, cache_dir=str(tmp_path / "cache")))
    models = [entry("base", tiny("llama"), options={"cache_bytes": "1MiB"})]
    models += [entry("wrong", wrong, base="base:1", pinned=True), entry("right", right, base="base:1")]
    replica.configure({"models": models})
    with pytest.raises(ModelUnavailable, match="another size"):
        await collect(replica.stream("wrong:1", ask("hello")))
    found = {status.name: status for status in replica.statuses()}
    assert found["wrong"].state is ModelState.UNAVAILABLE
    assert "its layer model.layers.0" in found["wrong"].reason
    assert found["wrong"].size_bytes == 0
    assert (await collect(replica.stream("right:1", ask("hello")))).model == "right"
    await replica.aclose()


async def test_how_many_run_together_changes_without_a_load(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    replica = PoolReplica(PoolArgs(budget_bytes=1 << 30, cache_dir=str(tmp_path / "cache")))

    async def steps(max_items: int) -> float:
        options = {"cache_bytes": "1MiB"}
        replica.configure({"models": [entry("m", tiny("llama"), options=options, batch={"max_items": max_items})]})
        await collect(replica.stream("m:1", ask(*["hello"] * 4)))
        samples = [s for metric in replica.collect() for s in metric.samples]
        return sum(s.value for s in samples if s.name == "model_endpoint_step_seconds_count")

    first, second = await steps(4), await steps(1)
    assert second - first > 3 * first
    samples = [s for metric in replica.collect() for s in metric.samples]
    assert [s.value for s in samples if s.name == "model_endpoint_loads_total"] == [1]
    await replica.aclose()


async def test_a_base_that_is_not_there_is_refused_and_what_an_adapter_leaves_to_it(tmp_path: Path) -> None:
    replica = PoolReplica(PoolArgs(budget_bytes=1, cache_dir=str(tmp_path)))
    wide = entry("w", Path("/x"), base="c:1", batch={"max_items": 2})
    replica.configure({"models": [entry("a", Path("/x"), base="b:1"), entry("c", Path("/x")), wide]})
    assert [status.key for status in replica.statuses()] == ["c:1"]
    assert "base: 'b:1' is not a model of this pool" in replica.status().rejected["a:1"]
    assert "batch: an adapter runs in the batches of its base" in replica.status().rejected["w:1"]
    await replica.aclose()


async def test_an_adapter_of_another_model_is_not_ready(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Whoever loads it is told, not the first who asks for an answer."""
    base, wrong = tiny("llama"), adapter_folder(tmp_path / "wrong", 1, out=48)
    replica = PoolReplica(PoolArgs(budget_bytes=2**30, cache_dir=str(tmp_path / "cache")))
    models = [entry("base", base, options={"cache_bytes": "1MiB"}), entry("a", wrong, base="base:1")]
    replica.configure({"models": models})
    with pytest.raises(ModelUnavailable, match="does not fit its base model"):
        await replica.load("a:1")
    of_base, adapter = replica.statuses()
    assert (of_base.state, adapter.state) == (ModelState.READY, ModelState.UNAVAILABLE)
    assert "another size" in adapter.reason
    assert adapter.size_bytes == 0
    await replica.aclose()
