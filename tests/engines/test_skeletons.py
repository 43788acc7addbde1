"""A further model of a kind, built from what is known of it, is what transformers would have built of its files."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_calls import alone, assert_equal, load, request
from safetensors.torch import load_file, save_file

from deployments.engines import loading, packed, skeletons
from deployments.engines.base import Parkable
from deployments.errors import ModelUnavailable

FAMILIES = {
    "bert": "feature-extraction",
    "sentence-bert": "feature-extraction",
    "bert-classifier": "text-classification",
    "gpt2-classifier": "text-classification",
    "bert-tagger": "token-classification",
    "roberta-masked": "fill-mask",
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(packed, "_TRIED", {})
    skeletons._KNOWN.clear()
    yield
    skeletons._KNOWN.clear()


def other_weights(folder: Path, target: Path) -> Path:
    """Make a second model of the same kind."""
    shutil.copytree(folder, target)
    generator = torch.Generator().manual_seed(1)
    noisy = {
        name: value + 0.2 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in load_file(target / "model.safetensors").items()
    }
    save_file(noisy, target / "model.safetensors", metadata={"format": "pt"})
    return target


def asked_of(task: str) -> Any:
    texts = ["a <mask> cat", "the <mask> dog"] if task == "fill-mask" else ["a happy cat", "the sad dog is not red"]
    return request(text=texts)


def by_transformers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by a name with each model that transformers builds."""
    built: list[str] = []
    usual = loading.load_model

    def load_model(auto_class: Any, *args: Any) -> Any:
        built.append(auto_class.__name__)
        return usual(auto_class, *args)

    monkeypatch.setattr(loading, "load_model", load_model)
    return built


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_further_model_of_a_kind_answers_as_if_transformers_had_built_it(
    name: str, dtype: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = FAMILIES[name]
    asked, folder = asked_of(task), other_weights(tiny(name), tmp_path / "other")
    want_engine = load(folder, task, dtype=dtype)
    want = alone(want_engine, asked)
    want_engine.close()
    skeletons._KNOWN.clear()
    packed._TRIED.clear()

    built = by_transformers(monkeypatch)
    first = load(tiny(name), task, dtype=dtype)
    of_first = alone(first, asked)
    second = load(folder, task, dtype=dtype)  # the first has settled
    first.close()
    third = load(folder, task, dtype=dtype)
    assert len(built) == 1
    for engine in (second, third):
        assert engine.size_bytes() == want_engine_size(folder, task, dtype)
        assert_equal(alone(engine, asked), want)
    again = load(tiny(name), task, dtype=dtype)
    assert_equal(alone(again, asked), of_first)


def want_engine_size(folder: Path, task: str, dtype: str) -> int:
    known = dict(skeletons._KNOWN)
    skeletons._KNOWN.clear()
    size = load(folder, task, dtype=dtype).size_bytes()
    skeletons._KNOWN.update(known)
    return size


def test_a_model_that_leaves_before_it_settled_is_learned_from(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.engines import load_engine
    from deployments.spec import ModelSpec

    built = by_transformers(monkeypatch)
    path = tiny("bert")
    spec = ModelSpec.model_validate({"name": "m", "task": "feature-extraction", "source": {"path": str(path)}})
    for _ in range(2):
        load_engine(path, spec, "cpu").close()
    assert len(built) == 1


def test_a_parked_model_teaches_nothing_and_one_of_a_known_kind_parks(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, asked = other_weights(tiny("bert-classifier"), tmp_path / "other"), asked_of("text-classification")
    first = load(folder, "text-classification")
    want = alone(first, asked)
    skeletons._KNOWN.clear()
    assert isinstance(first, Parkable)
    first.park()
    first.close()
    assert not skeletons._KNOWN
    load(tiny("bert-classifier"), "text-classification").close()
    second = load(folder, "text-classification")
    assert isinstance(second, Parkable)
    size = second.size_bytes()
    second.park()
    assert second.size_bytes() < 0.1 * size
    second.unpark()
    assert_equal(alone(second, asked), want)


def test_weights_that_the_task_does_not_need_may_lack(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny("bert"), folder)
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if "pooler" not in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    asked = asked_of("feature-extraction")
    first = load(folder, "feature-extraction")
    want = alone(first, asked)
    first.close()
    assert [known is not None for known in skeletons._KNOWN.values()] == [True]
    assert_equal(alone(load(folder, "feature-extraction"), asked), want)


@pytest.mark.parametrize("change", ["config", "header", "class", "dtype"])
def test_what_decides_how_a_model_is_built_makes_another_kind(
    change: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoModelForMaskedLM

    folder = tmp_path / "other"
    shutil.copytree(tiny("bert"), folder)
    before = skeletons.kind_of(tiny("bert"), AutoModel, torch.float32, None)
    assert skeletons.kind_of(folder, AutoModel, torch.float32, None) == before
    if change == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    elif change == "header":
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {"one.more": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    auto_class = AutoModelForMaskedLM if change == "class" else AutoModel
    dtype = torch.bfloat16 if change == "dtype" else torch.float32
    assert skeletons.kind_of(folder, auto_class, dtype, None) != before


def test_a_cut_off_file_of_a_known_kind_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    load(tiny("bert"), "feature-extraction").close()
    folder = tmp_path / "cut"
    shutil.copytree(tiny("bert"), folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelUnavailable):
        load(folder, "feature-extraction")


@pytest.mark.parametrize("strange", ["closure", "weight of its own"])
def test_a_module_that_cannot_be_copied_is_built_by_transformers_each_time(
    strange: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, built = loading.load_model, []

    def load_model(*args: Any) -> Any:
        model = usual(*args)
        built.append(model)
        if strange == "closure":
            model.encoder.strange = lambda: model.embeddings
        else:
            model.encoder.strange = torch.nn.Parameter(torch.ones(3))
        return model

    monkeypatch.setattr(loading, "load_model", load_model)
    for _ in range(2):
        load(tiny("bert"), "feature-extraction").close()
    assert len(built) == 2


def test_only_so_many_kinds_are_kept(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skeletons, "_MAX_KINDS", 2)
    for index in range(4):
        folder = tmp_path / str(index)
        shutil.copytree(tiny("bert"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"initializer_range": 0.02 + 0.001 * (index + 1)}))
        load(folder, "feature-extraction").close()
    assert len(skeletons._KNOWN) == 2
