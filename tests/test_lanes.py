"""What a lane learns of its model's speed, and whom it refuses for it."""

import numpy as np
import pytest

from deployments.errors import Overloaded
from deployments.types import InferRequest, InferResult
from serve_app.lanes import Lane, Target

PATIENCE_S = 30.0


def busy_lane() -> Lane:
    """Return a lane on which 64 requests wait or are on board."""
    lane = Lane(Target("pool", "minilm:1"))
    for _ in range(64):
        ask(lane, 1e9)
    return lane


def ask(lane: Lane, patience_s: float) -> None:
    lane.enter(InferRequest("minilm", {"x": np.zeros(1)}), patience_s, 0.0)


def answer(lane: Lane, now: float, n: int = 8) -> None:
    lane.learn([(i, InferResult("minilm", "1", {})) for i in range(n)], now)


async def test_a_standstill_of_the_machine_is_not_the_speed_of_the_model() -> None:
    """A laptop that slept, a container that was frozen: whoever asks next is not refused for it."""
    lane, now = busy_lane(), 0.0
    for _ in range(20):
        answer(lane, now := now + 0.1)
    answer(lane, now + 600.0)
    ask(lane, PATIENCE_S)


async def test_a_model_that_is_slow_from_one_answer_to_the_next_is_found_out_all_the_same() -> None:
    lane, now = busy_lane(), 0.0
    for _ in range(20):
        answer(lane, now := now + 0.1)
    for _ in range(8):
        answer(lane, now := now + 60.0)
    with pytest.raises(Overloaded):
        ask(lane, PATIENCE_S)
