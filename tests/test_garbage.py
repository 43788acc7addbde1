"""Python looks for circles of garbage seldom, and finds them still."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from deployments.garbage import collect_seldom


class Node:
    def __init__(self) -> None:
        self.myself = self


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def n_collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_open_requests_are_not_looked_through_again_and_again() -> None:
    collect_seldom()
    gc.collect()
    before = n_collections()
    kept = [[] for _ in range(10_000)]
    assert (len(kept), n_collections() - before) == (10_000, 0)


def test_a_circle_goes_all_the_same() -> None:
    collect_seldom()
    gone = weakref.ref(Node())
    kept = [[] for _ in range(50_000)]
    assert gone() is None, len(kept)
