"""Loading folders: formats allowed, dtypes, limits, sizes; and that every family's class is where the table says."""

import importlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_calls import alone, assert_equal, load, request
from tiny_models import build

from deployments.engines import ENGINES
from deployments.engines.loading import resolve_dtype
from deployments.errors import InputTooLong, ModelUnavailable

TASK = "feature-extraction"


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    from transformers import AutoModel

    folder = build("bert", tmp_path / "pickled")
    torch.save(AutoModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("name", ENGINES)
def test_every_row_of_the_table_names_a_class_that_exists(name: str) -> None:
    module, _, attribute = ENGINES[name].factory.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_folder_without_safetensors_is_refused_with_the_fix(pickled: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"pytorch_model.bin.*convert.*or .*`allow: \[pickle\]`"):
        load(pickled, TASK)


def test_stray_safetensors_file_does_not_let_pickle_in(pickled: Path) -> None:
    (pickled / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors"):
        load(pickled, TASK)


def test_pickled_weights_load_where_they_are_allowed(pickled: Path, tiny: Callable[[str], Path]) -> None:
    asked = request(text=["a cat"])
    assert_equal(alone(load(pickled, TASK, allow=["pickle"]), asked), alone(load(tiny("bert"), TASK), asked))


def test_pickled_code_does_not_run_even_where_pickle_is_allowed(pickled: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Evil()}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable):
        load(pickled, TASK, allow=["pickle"])
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_does_not_run(tmp_path: Path) -> None:
    folder = build("bert", tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelUnavailable):
        load(folder, TASK)
    assert not (tmp_path / "ran").exists()


def test_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="holds no config"):
        load(tmp_path, TASK)


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = build("bert", tmp_path / "mute")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelUnavailable):
        load(folder, TASK)


def test_dtype_auto_is_float32_on_cpu_and_names_are_taken_as_written(tiny: Callable[[str], Path]) -> None:
    assert resolve_dtype("auto", "cpu") is torch.float32
    full, half = load(tiny("bert"), TASK), load(tiny("bert"), TASK, dtype="bfloat16")
    # Half the weights' bytes, but for the integer buffers.
    assert 0.5 <= half.size_bytes() / full.size_bytes() < 0.52
    asked = request(text=["a cat"])
    got, want = alone(half, asked)["embedding"], alone(full, asked)["embedding"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=0.2)


def test_size_is_about_that_of_the_file(tiny: Callable[[str], Path]) -> None:
    on_disk = (tiny("bert") / "model.safetensors").stat().st_size
    assert load(tiny("bert"), TASK).size_bytes() == pytest.approx(on_disk, rel=0.1)


def test_limit_of_the_entry_lowers_the_models_and_never_raises_it(tiny: Callable[[str], Path]) -> None:
    text = request(text=["cat " * 12])
    load(tiny("bert"), TASK, max_tokens=14).prepare(text)
    with pytest.raises(InputTooLong, match="this model takes 13"):
        load(tiny("bert"), TASK, max_tokens=13).prepare(text)
    with pytest.raises(InputTooLong, match="this model takes 32"):
        load(tiny("bert"), TASK, max_tokens=5000).prepare(request(text=["cat " * 40]))


def test_limit_that_leaves_no_room_for_text_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ModelUnavailable, match="leaves no room beside 3 special tokens"):
        load(tiny("bert"), TASK, max_tokens=3)


def test_tokenizer_without_a_limit_takes_the_models(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bert"), tmp_path / "boundless")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": int(1e30)}))
    with pytest.raises(InputTooLong, match="this model takes 32"):
        load(folder, TASK).prepare(request(text=["cat " * 40]))


def test_closed_engine_lets_go_of_its_weights(tiny: Callable[[str], Path]) -> None:
    import gc
    import weakref

    engine = load(tiny("bert"), TASK)
    weights = weakref.ref(engine._model)  # type: ignore[attr-defined]
    engine.close()
    gc.collect()
    assert weights() is None


def test_models_may_load_in_several_threads_at_once(tiny: Callable[[str], Path]) -> None:
    """Transformers' own loading is not safe for threads: it would leave a process that ties no weights any more."""
    paths = {"bert-masked": "fill-mask", "roberta-masked": "fill-mask", "bert-classifier": "text-classification"}
    folders = [(tiny(name), task) for name, task in paths.items()]
    with ThreadPoolExecutor(4) as threads:
        engines = list(threads.map(lambda job: load(*job), folders * 8))
    assert len(engines) == 24
