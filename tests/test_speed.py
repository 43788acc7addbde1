"""Speed: what a batch costs is learned, and with it how large one should be."""

import random

import pytest

from deployments.speed import MAX_BUDGET, MIN_BUDGET, OVERHEAD_SHARE, OVERHEAD_TOKENS, Speed


def test_nothing_is_predicted_before_the_first_batch() -> None:
    assert Speed().predict(1000) == 0.0
    assert Speed().budget == int(OVERHEAD_TOKENS / OVERHEAD_SHARE)


def test_overhead_and_rate_are_found_among_noise() -> None:
    speed, chance = Speed(), random.Random(0)
    for _ in range(200):
        cost = chance.randint(10, 4000)
        speed.learn(cost, (0.010 + cost * 1e-4) * chance.uniform(0.95, 1.05))
    assert speed.predict(2000) == pytest.approx(0.210, rel=0.1)
    assert speed.predict(4000, n_batches=4) == pytest.approx(0.440, rel=0.1)
    assert speed.budget == pytest.approx(2000, rel=0.5)  # 0.010 is a twentieth of 0.200


def test_a_device_with_much_overhead_gets_larger_batches() -> None:
    slow, fast = Speed(), Speed()
    for cost in (100, 200, 400, 800) * 5:
        slow.learn(cost, 0.001 + cost * 1e-3)
        fast.learn(cost, 0.01 + cost * 1e-6)
    assert slow.budget == MIN_BUDGET
    assert fast.budget > 100_000


@pytest.mark.parametrize(("rate_s", "budget"), [(1e-4, 960), (4e-4, 750), (1e-3, MIN_BUDGET)])
def test_hardly_any_overhead_is_believed_only_where_batches_are_long(rate_s: float, budget: int) -> None:
    speed = Speed()
    for cost in (100, 200, 400, 800) * 5:
        speed.learn(cost, rate_s * (1 + cost))
    assert speed.budget == pytest.approx(budget, abs=1)


def test_batches_all_alike_say_only_how_long_such_a_batch_takes() -> None:
    speed = Speed()
    for _ in range(10):
        speed.learn(352, 0.1)
    assert speed.predict(352) == pytest.approx(0.1)
    assert speed.budget == int(OVERHEAD_TOKENS / OVERHEAD_SHARE)


def test_time_that_does_not_grow_with_cost_is_all_overhead() -> None:
    speed = Speed()
    for cost in (1, 10, 30, 5) * 3:
        speed.learn(cost, 0.02)
    assert speed.predict(32) == pytest.approx(0.02)
    assert speed.budget <= MAX_BUDGET


def test_a_machine_that_gets_busy_is_noticed() -> None:
    speed = Speed()
    for cost in (100, 300) * 50:
        speed.learn(cost, cost * 1e-4)
    for cost in (100, 300) * 50:
        speed.learn(cost, cost * 3e-4)
    assert speed.predict(200) == pytest.approx(0.06, rel=0.05)


def test_a_machine_that_slept_through_a_batch_is_not_taken_for_a_slow_one() -> None:
    speed = Speed()
    for cost in (100, 300) * 50:
        speed.learn(cost, cost * 1e-4)
    speed.learn(200, 190.0)
    assert speed.predict(64 * 200) < 3.0
    for cost in (100, 300) * 50:  # a hundred times slower from now on: found out all the same
        speed.learn(cost, cost * 1e-2)
    assert speed.predict(200) == pytest.approx(2.0, rel=0.1)
