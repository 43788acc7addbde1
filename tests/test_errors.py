"""Every error survives the way through Ray, and means one thing."""

import pickle

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

from deployments import errors
from deployments.errors import ServeError


def family(root: type[ServeError]) -> list[type[ServeError]]:
    return [root, *(member for child in root.__subclasses__() for member in family(child))]


ALL = [kind for kind in family(ServeError) if kind.__module__.startswith(("deployments", "serve_app"))]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_it_survives_pickling(kind: type[ServeError], pickler: object) -> None:
    error = kind("what went wrong", field="inputs[0]", retry_after_s=2.5)
    again = pickler.loads(pickler.dumps(error))  # type: ignore[attr-defined]
    assert (type(again), again.message, again.details) == (kind, error.message, error.details)
    assert again.retry_after_s == 2.5


@pytest.mark.parametrize("kind", ALL)
def test_it_keeps_its_face_across_a_handle(kind: type[ServeError]) -> None:
    crossed = RayTaskError("infer_many", "a remote traceback", kind("short", field="x")).as_instanceof_cause()
    assert isinstance(crossed, kind)
    assert (crossed.message, crossed.details, crossed.status, crossed.code) == (
        "short",
        {"field": "x"},
        kind.status,
        kind.code,
    )


def test_codes_are_unique_and_statuses_fit() -> None:
    codes = [kind.code for kind in ALL]
    assert len(set(codes)) == len(codes)
    for kind in ALL:
        assert 400 <= kind.status < 600
        assert kind.code in (errors.__doc__ or ""), f"{kind.__name__} is missing in the tree of errors.py"
        assert f"{kind.status} {kind.code}" in " ".join((errors.__doc__ or "").split())


def test_an_unknown_wait_is_none() -> None:
    assert ServeError("x").retry_after_s is None
    assert ServeError("x", retry_after_s="soon").retry_after_s is None
