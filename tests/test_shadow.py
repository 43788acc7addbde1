"""Shadow traffic: it reaches no client, and says how far two models' answers are apart."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traffic_cases import Clock, Counts, model, settle, texts, work

from deployments.errors import EngineFailure, ModelNotFound
from deployments.types import InferRequest, InferResult, ModelStatus, Task, text_array
from serve_app import shadow as module
from serve_app.comparison import difference
from serve_app.shadow import LAST, MAX_REQUESTS, Shadows
from serve_app.traffic_config import Shadow

ANSWER = {"embedding": np.array([[1.0, 0.0], [0.0, 2.0]], dtype=np.float32)}


class Models:
    def resolve(self, name: str, version: str | None = None) -> ModelStatus:
        if name == "gone":
            raise ModelNotFound("unknown model 'gone'")
        return model(name, timeout_s=7.0)

    def all(self) -> tuple[ModelStatus, ...]:
        raise NotImplementedError

    versions = readiness = all  # type: ignore[assignment]


class Case:
    def __init__(self) -> None:
        self.clock = Clock()
        self.count = Counts()
        self.outputs: dict[str, np.ndarray] | Exception = dict(ANSWER)  # type: ignore[type-arg]
        self.asked: list[tuple[ModelStatus, InferRequest, float]] = []
        self.gate: asyncio.Event | None = None
        self.shadows = Shadows(Models(), self.ask, self.count.metrics, self.clock)  # type: ignore[arg-type]

    async def ask(self, status: ModelStatus, request: InferRequest, deadline: float) -> InferResult:
        self.asked.append((status, request, deadline))
        if self.gate:
            await self.gate.wait()
        if isinstance(self.outputs, Exception):
            raise self.outputs
        return InferResult(status.name, status.version, self.outputs)

    async def answered(self, *shadows: Shadow, n: int = 1) -> None:
        for _ in range(n):
            one = work(texts("a", "b", timeout_s=0.1, priority=5), shadows=shadows)
            self.shadows.answered(one, InferResult("m", "1", ANSWER))
        await settle()

    def results(self) -> dict[str, float]:
        names = ("agree", "differ", "dropped", "engine_failure", "model_not_found", "internal")
        counted = {name: self.count("shadow_requests_total", alias="m", result=name) for name in names}
        return {name: n for name, n in counted.items() if n}


async def test_a_shadow_is_asked_behind_everybody_else_in_its_own_time() -> None:
    case = Case()
    await case.answered(Shadow(model="n"))
    ((status, request, deadline),) = case.asked
    assert (status.name, request.priority, deadline - case.clock()) == ("n", LAST, 7.0)
    assert request.timeout_s is None
    assert case.results() == {"agree": 1}


@pytest.mark.parametrize(
    ("second", "tolerance", "result"),
    [([0.0, 2.2], 0.01, "agree"), ([0.5, 2.0], 0.01, "differ"), ([2.0, 2.0], 0.5, "agree")],
)
async def test_answers_are_compared_within_the_tolerance(second: list[float], tolerance: float, result: str) -> None:
    case = Case()
    case.outputs = {"embedding": np.array([[3.0, 0.0], second], dtype=np.float32)}
    await case.answered(Shadow(model="n", tolerance=tolerance))
    assert case.results() == {result: 1}
    assert case.count("shadow_difference_count", shadow="n") == 1


@pytest.mark.parametrize(
    ("error", "result"), [(EngineFailure("x"), "engine_failure"), (RuntimeError("a bug"), "internal")]
)
async def test_a_shadows_failure_is_counted_and_forgotten(error: Exception, result: str) -> None:
    case = Case()
    case.outputs = error
    await case.answered(Shadow(model="n"))
    assert case.results() == {result: 1}


async def test_a_shadow_that_does_not_exist_hurts_nobody() -> None:
    case = Case()
    await case.answered(Shadow(model="gone"), Shadow(model="n"))
    assert case.results() == {"agree": 1, "model_not_found": 1}


async def test_shadows_that_pile_up_are_dropped() -> None:
    case = Case()
    case.gate = asyncio.Event()
    await case.answered(Shadow(model="n"), n=MAX_REQUESTS + 5)
    assert case.results() == {"dropped": 5}
    case.gate.set()
    await settle()
    assert case.results() == {"dropped": 5, "agree": MAX_REQUESTS}
    case.gate = asyncio.Event()
    await case.answered(Shadow(model="n"), n=2)
    await case.shadows.aclose()


async def test_large_requests_are_shadowed_within_a_bound_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 5)
    case = Case()
    case.gate = asyncio.Event()
    await case.answered(Shadow(model="n"), n=2)  # of 2 bytes each
    await case.answered(Shadow(model="n"))
    assert case.results() == {"dropped": 1}
    case.gate.set()
    await settle()
    await case.answered(Shadow(model="n"))
    assert case.results() == {"dropped": 1, "agree": 3}


LABELS = {"label": np.array([[b"good", b"bad"], [b"bad", b"good"]], dtype=object)}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (LABELS, LABELS, 0.0),
        (LABELS, {"label": LABELS["label"][::-1]}, 1.0),
        (LABELS, {"label": LABELS["label"][[0, 0]]}, 0.5),
        (LABELS, {"label": LABELS["label"][:1]}, math.inf),
        (LABELS, {"other": LABELS["label"]}, math.inf),
        ({"logits": np.array([[0.1, 0.9]])}, {"logits": np.array([[0.4, 0.6]])}, 0.0),
    ],
)
def test_top1_is_the_share_of_rows_whose_first_label_differs(ours: dict, theirs: dict, expected: float) -> None:  # type: ignore[type-arg]
    assert difference(Task.TEXT_CLASSIFICATION, None, ours, theirs) == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], math.inf),
        ([1.0], [1.0, 2.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_absolute_is_the_greatest_difference(ours: list[float], theirs: list[float], expected: float) -> None:
    assert difference(Task.TENSOR, None, {"y": np.array(ours)}, {"y": np.array(theirs)}) == expected


def test_strings_differ_or_do_not() -> None:
    ours, theirs = {"y": text_array(["a", "b"])}, {"y": text_array(["a", "c"])}
    assert difference(Task.CUSTOM, None, ours, theirs) == 1.0
    assert difference(Task.CUSTOM, None, ours, ours) == 0.0


VECTORS = st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=4)


@given(VECTORS, st.floats(0.5, 100))
def test_the_length_of_a_vector_does_not_matter_to_cosine(rows: list[list[float]], factor: float) -> None:
    ours = {"embedding": np.array(rows, dtype=np.float64)}
    theirs = {"embedding": ours["embedding"] * factor}
    assert difference(Task.FEATURE_EXTRACTION, "cosine", ours, theirs) == pytest.approx(0.0, abs=1e-6)


def test_vectors_of_zeros_and_other_sizes() -> None:
    zeros, ones = {"v": np.zeros((1, 3))}, {"v": np.ones((1, 3))}
    assert difference(Task.FEATURE_EXTRACTION, None, zeros, zeros) == 0.0
    assert difference(Task.FEATURE_EXTRACTION, None, zeros, ones) == 1.0
    assert difference(Task.FEATURE_EXTRACTION, None, ones, {"v": np.ones((1, 4))}) == math.inf
    assert difference(Task.FEATURE_EXTRACTION, None, ones, {"v": np.full((1, 3), np.nan)}) == math.inf
