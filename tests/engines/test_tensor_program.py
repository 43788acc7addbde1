"""Numeric programs: TorchScript and torch.export, batched and whole, right and wrong; and the real silero-vad."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_calls import alone, assert_equal, assert_matches_signature, load, request, together
from torch import Tensor, nn

from deployments.engines import expected_signature
from deployments.errors import EngineFailure, InvalidInput, ModelUnavailable
from deployments.spec import ModelSpec

# TorchScript is deprecated in torch 2.13, and still how many programs come.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

TASK = "tensor"
SCRIPT, EXPORT = {"allow": ["torchscript"]}, {"allow": ["torch_export"]}


class Scale(nn.Module):
    """Rows of x (n, k) times by (n,), and how many columns there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
        x.mul_(by.unsqueeze(1))  # writes into its argument, as real programs do
        return x + self.bias, torch.full((x.shape[0],), x.shape[1], dtype=torch.int64)


class Steps(nn.Module):
    """Adds a plain number to a tensor of any shape, in place."""

    def forward(self, x: Tensor, n: int) -> Tensor:
        if n < 0:
            raise ValueError("n must not be negative")
        return x.add_(n)


def tensors(*rows: tuple[str, str, list[int]]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in rows]


SCALE = {
    "inputs": tensors(("x", "FP32", [-1, -1]), ("by", "FP32", [-1])),
    "outputs": tensors(("y", "FP32", [-1, -1]), ("width", "INT64", [-1])),
}
STEPS = {
    "inputs": tensors(("x", "FP32", [-1, -1]), ("n", "INT64", [1])),
    "outputs": tensors(("y", "FP32", [-1, -1])),
    "batched": False,
}


@pytest.fixture(scope="module")
def scale_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "scale.pt"
    torch.jit.script(Scale()).save(str(path))
    return path


@pytest.fixture(scope="module")
def scale_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "scale.pt2"
    n, k = torch.export.Dim("n"), torch.export.Dim("k")
    example = (torch.rand(3, 4), torch.rand(3))
    exported = torch.export.export(Scale(), example, dynamic_shapes={"x": {0: n, 1: k}, "by": {0: n}})
    torch.export.save(exported, path)
    return path


@pytest.fixture(scope="module")
def steps_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "steps.pt"
    torch.jit.script(Steps()).save(str(path))
    return path


def scaled(x: Any, by: Any) -> dict[str, Any]:
    return {"y": x * by[:, None] + np.float32(0.5), "width": np.full(len(x), x.shape[1], dtype=np.int64)}


def check_scale(path: Path, allow: dict[str, Any]) -> None:
    engine = load(path, TASK, options=SCALE, **allow)
    dice = np.random.default_rng(0)
    inputs = [
        (dice.random((n, k), np.float32), dice.random(n, np.float32)) for n, k in ((2, 4), (3, 4), (2, 7), (1, 4))
    ]
    before = [(x.copy(), by.copy()) for x, by in inputs]
    requests = [request(x=x, by=by) for x, by in inputs]
    want = [scaled(x, by) for x, by in before]
    for asked, expected in zip(requests, want, strict=True):
        assert_equal(alone(engine, asked), expected)
    for asked, got, expected in zip(requests, together(engine, requests), want, strict=True):
        assert_equal(got, expected)
        assert_matches_signature(engine, asked, got)
    for (x, by), (old_x, old_by) in zip(inputs, before, strict=True):
        assert np.array_equal(x, old_x)
        assert np.array_equal(by, old_by)


def test_torchscript_rows_are_the_same_batched_and_alone_and_inputs_stay(scale_script: Path) -> None:
    check_scale(scale_script, SCRIPT)


def test_torch_export_rows_are_the_same_batched_and_alone_and_inputs_stay(scale_export: Path) -> None:
    check_scale(scale_export, EXPORT)


def test_only_rows_of_equal_shape_share_a_batch(scale_script: Path) -> None:
    engine = load(scale_script, TASK, options=SCALE, **SCRIPT)
    one, two = (engine.prepare(request(x=np.ones((2, k), np.float32), by=np.ones(2, np.float32))) for k in (3, 4))
    assert one[0].group == one[1].group != two[0].group


def test_the_only_program_of_a_folder_is_found_and_its_size_counted(scale_script: Path) -> None:
    assert load(scale_script.parent, TASK, options=SCALE, **SCRIPT).size_bytes() == 4


def test_whole_request_is_one_item_and_numbers_go_in_as_numbers(steps_script: Path) -> None:
    engine = load(steps_script, TASK, options=STEPS, **SCRIPT)
    requests = [request(x=np.ones((n, 2), np.float32), n=np.array([n])) for n in (1, 3)]
    assert [len(engine.prepare(asked)) for asked in requests] == [1, 1]
    for n, got in zip((1, 3), together(engine, requests), strict=True):
        assert_equal(got, {"y": np.full((n, 2), 1 + n, np.float32)})
    assert all((asked.inputs["x"] == 1).all() for asked in requests), "a request was changed"


def test_program_that_raises_is_an_engine_failure_with_its_last_line(steps_script: Path) -> None:
    engine = load(steps_script, TASK, options=STEPS, **SCRIPT)
    with pytest.raises(EngineFailure, match=r"failed on this input: .*n must not be negative$"):
        alone(engine, request(x=np.ones((1, 1), np.float32), n=np.array([-1])))


def test_unequal_rows_are_refused_by_name(scale_script: Path) -> None:
    engine = load(scale_script, TASK, options=SCALE, **SCRIPT)
    with pytest.raises(InvalidInput, match="'by' has 3 rows but 'x' has 2") as caught:
        engine.prepare(request(x=np.ones((2, 4), np.float32), by=np.ones(3, np.float32)))
    assert caught.value.details["field"] == "by"


def test_parameters_are_refused(scale_script: Path) -> None:
    with pytest.raises(InvalidInput, match="this model knows: none"):
        load(scale_script, TASK, options=SCALE, **SCRIPT).prepare(
            request({"top_k": 1}, x=np.ones((1, 1), np.float32), by=np.ones(1, np.float32))
        )


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (tensors(("y", "FP32", [-1, -1])), "2 outputs, but the model's entry declares 1"),
        (tensors(("y", "FP64", [-1, -1]), ("w", "INT64", [-1])), r"'y': datatype torch.float32, .* FP64"),
        (tensors(("y", "FP32", [-1, 9]), ("w", "INT64", [-1])), r"'y': shape \[2, 4\], .* \[2, 9\]"),
        (tensors(("y", "FP32", [-1]), ("w", "INT64", [-1])), r"'y': shape \[2, 4\], .* \[2\]"),
    ],
)
def test_output_other_than_declared_is_an_engine_failure(scale_script: Path, outputs: Any, says: str) -> None:
    engine = load(scale_script, TASK, options={**SCALE, "outputs": outputs, "warm_up": False}, **SCRIPT)
    with pytest.raises(EngineFailure, match=says):
        together(engine, [request(x=np.ones((2, 4), np.float32), by=np.ones(2, np.float32))])


def test_wrong_declaration_shows_at_warm_up_already(scale_script: Path) -> None:
    with pytest.raises(ModelUnavailable, match="warm_up: false"):
        load(scale_script, TASK, options={**SCALE, "outputs": SCALE["outputs"][:1]}, **SCRIPT)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"options": SCALE}, r"if you trust it, write `allow: \[torchscript\]`"),
        ({"options": {**SCALE, "method": "go"}, **SCRIPT}, "has no method 'go'; set options.method"),
        (
            {"options": {**SCALE, "inputs": SCALE["inputs"][:1]}, **SCRIPT},
            r"names 1 tensors, but forward takes \(x, by\)",
        ),
    ],
)
def test_program_that_may_not_or_cannot_be_loaded_says_why(scale_script: Path, fields: Any, says: str) -> None:
    with pytest.raises(ModelUnavailable, match=says):
        load(scale_script, TASK, **fields)


def test_export_needs_its_own_permission(scale_export: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"allow: \[torch_export\]"):
        load(scale_export, TASK, options=SCALE, **SCRIPT)


def test_folder_with_no_program_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"must hold one file \.pt2"):
        load(tmp_path, TASK, options=SCALE, **SCRIPT)


def test_batched_program_of_fixed_size_is_refused_before_loading() -> None:
    options = {**SCALE, "inputs": tensors(("x", "FP32", [1, -1]))}
    spec = ModelSpec.model_validate({"name": "m", "task": TASK, "source": {"path": "p"}, "options": options})
    with pytest.raises(ValueError, match=r"'x': batched programs take rows.*batched: false"):
        expected_signature(spec)


@pytest.mark.parametrize(
    ("shape", "example", "is_right"),
    [
        ([1], [16000], True),
        ([-1, 2], [[1, 2.5], [3, 4]], True),
        ([1], [1, 2], False),
        ([-1, 2], [1, 2], False),
        ([-1, -1], [[1], [1, 2]], False),
        ([1], ["a"], False),
        ([1], [None], False),
    ],
)
def test_an_example_is_numbers_nested_as_the_shape_says(shape: list[int], example: Any, is_right: bool) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": shape, "example": example}]
    if is_right:
        inputs += [{"name": "z", "datatype": "INT64", "shape": [-1, 2], "example_shape": [1, 2]}]
    options = {**SCALE, "inputs": inputs, "batched": False}
    spec = ModelSpec.model_validate({"name": "m", "task": TASK, "source": {"path": "p"}, "options": options})
    if is_right:
        given, zeros = expected_signature(spec).inputs
        assert (list(given.example), zeros.example) == (example, ([0, 0],))
        return
    with pytest.raises(ValueError, match=r"example|inhomogeneous"):
        expected_signature(spec)


VAD = {
    "inputs": tensors(("audio", "FP32", [-1, -1]), ("sample_rate", "INT64", [1])),
    "outputs": tensors(("speech", "FP32", [-1, -1])),
    "batched": False,
    "method": "audio_forward",
    "warm_up": False,
}


def test_silero_vad_hears_a_whole_clip_and_keeps_nothing_of_it(silero: Path) -> None:
    engine = load(silero, TASK, options=VAD, **SCRIPT)
    plain: Callable[..., Tensor] = torch.jit.load(str(silero)).audio_forward
    dice = np.random.default_rng(0)
    clips = [dice.normal(0, 0.1, (1, n)).astype(np.float32) for n in (16_000, 5_000, 8_192)]
    requests = [request(audio=clip, sample_rate=np.array([16_000])) for clip in clips]
    want = [{"speech": plain(torch.from_numpy(clip), 16_000).numpy()} for clip in clips]
    assert want[0]["speech"].shape == (1, 32)
    for seed in range(3):  # in any order: a program that keeps state would differ
        for got, expected in zip(together(engine, requests, seed), want, strict=True):
            assert_equal(got, expected)
    with pytest.raises(EngineFailure, match="Supported sampling rates"):
        alone(engine, request(audio=clips[0], sample_rate=np.array([8_001])))
