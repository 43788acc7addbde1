"""Parking: a model off the device and back answers as before, and holds nothing meanwhile that its files hold."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_calls import alone, assert_equal, load, request
from PIL import Image
from safetensors.torch import load_file, save_file

from deployments.engines.base import Engine, Parkable
from deployments.sources import weight_files
from deployments.weights import expected_bytes

TEXTS = ["a happy cat", "the sad dog is not red"]
FAMILIES = {
    "bert": ("feature-extraction", {}),
    "sentence-bert": ("feature-extraction", {}),
    "bert-classifier": ("text-classification", {}),
    "gpt2-classifier": ("text-classification", {}),
    "bert-tagger": ("token-classification", {}),
    "roberta-masked": ("fill-mask", {}),
}


def parkable(engine: Engine) -> Parkable:
    assert isinstance(engine, Parkable)
    return engine


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_after_coming_back_are_those_of_before(name: str, tiny: Callable[[str], Path]) -> None:
    task, fields = FAMILIES[name]
    engine = load(tiny(name), task, **fields)
    texts = ["a <mask> cat", "the <mask> dog"] if task == "fill-mask" else TEXTS
    asked = request(text=texts)
    before, size = alone(engine, asked), engine.size_bytes()
    for _ in range(2):
        parkable(engine).park()
        assert engine.size_bytes() < 0.1 * size, "weights that are in the files are not held as well"
        parkable(engine).unpark()
        assert engine.size_bytes() == size
        assert_equal(alone(engine, asked), before)


def test_an_image_model_parks_too(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("vit"), "image-classification")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 40)).save(buffer, "PNG")
    asked = request(image=np.array([buffer.getvalue()], dtype=np.object_))
    before = alone(engine, asked)
    parkable(engine).park()
    parkable(engine).unpark()
    assert_equal(alone(engine, asked), before)


def test_what_the_files_do_not_hold_stays_in_memory(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Here every weight is converted on the way in, so none equals its file."""
    folder = tmp_path / "half"
    folder.mkdir()
    for file in tiny("bert-classifier").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file({k: v.half() for k, v in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")
    engine = load(folder, "text-classification", dtype="float32")
    asked = request(text=TEXTS)
    before, size = alone(engine, asked), engine.size_bytes()
    parkable(engine).park()
    assert engine.size_bytes() == size
    parkable(engine).unpark()
    assert_equal(alone(engine, asked), before)


def test_a_parked_engine_can_be_closed(tiny: Callable[[str], Path]) -> None:
    engine = load(tiny("bert"), "feature-extraction")
    parkable(engine).park()
    engine.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_the_weights_wait_in_host_ram(tiny: Callable[[str], Path]) -> None:
    from deployments.engines import load_engine
    from deployments.spec import ModelSpec

    path = tiny("bert-classifier")
    spec = ModelSpec.model_validate({"name": "m", "task": "text-classification", "source": {"path": str(path)}})
    engine = load_engine(path, spec, "cuda")
    asked = request(text=TEXTS)
    before = alone(engine, asked)
    held = torch.cuda.memory_allocated()
    parkable(engine).park()
    assert torch.cuda.memory_allocated() < held / 2
    parkable(engine).unpark()
    assert_equal(alone(engine, asked), before)


@pytest.mark.parametrize(
    ("dtype", "device", "factor"),
    [("auto", "cpu", 1.0), ("float32", "cpu", 1.0), ("bfloat16", "cpu", 0.5), ("auto", "cuda", 0.5)],
)
def test_the_headers_tell_what_a_model_takes(
    dtype: str, device: str, factor: float, tiny: Callable[[str], Path]
) -> None:
    path = tiny("bert-classifier")
    engine = load(path, "text-classification", dtype="float32")
    n_buffers = 8 * 32 * 2  # position and type ids: int64, not in the files
    found = expected_bytes(weight_files(path), dtype, device)
    assert found == pytest.approx(factor * engine.size_bytes(), abs=n_buffers)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**60), struct.pack("<Q", 4) + b"{]{]",
                                     struct.pack("<Q", 9) + b'{"a": [1]'])  # fmt: skip
def test_a_broken_header_costs_its_file_size(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert expected_bytes([file], "auto", "cpu") == len(content)


def test_whole_numbers_are_not_converted(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tensors: dict[str, Any] = {"a": torch.zeros(10, dtype=torch.int64), "b": torch.zeros(10, dtype=torch.float64)}
    save_file(tensors, file)
    assert expected_bytes([file], "float16", "cuda") == 80 + 20


def gguf(*shapes: tuple[int, ...], fields: bytes = b"", n_fields: int = 0) -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    tensors = b"".join(
        text(b"t") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", 2, 0) for shape in shapes
    )
    return b"GGUF" + struct.pack("<IQQ", 3, len(shapes), n_fields) + fields + tensors


def test_a_gguf_file_takes_what_it_unpacks_to(tmp_path: Path) -> None:
    name, vocabulary = struct.pack("<Q", 1) + b"v", struct.pack("<IIQ", 9, 8, 2) + 2 * (struct.pack("<Q", 3) + b"abc")
    numbers, flag = struct.pack("<IIQ", 9, 5, 3) + bytes(12), struct.pack("<I?", 7, True)
    content = gguf((10, 3), (7,), fields=name + vocabulary + name + numbers + name + flag, n_fields=3)
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    assert expected_bytes([file], "auto", "cpu") == 37 * 4
    assert expected_bytes([file], "bfloat16", "cpu") == 37 * 2


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGML" + bytes(40), gguf((3,))[:-14], b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60)]
)
def test_a_broken_gguf_header_costs_its_file_size(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    assert expected_bytes([file], "auto", "cpu") == len(content)
