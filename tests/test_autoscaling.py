"""The autoscaling policy: waiting work adds replicas, busy ones stay, idle ones leave."""

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.autoscaling import waiting_work


def wanted(n_now: int, waiting: list[float] | None, busy: list[float] | None = None, n_requests: int = 0) -> int:
    metrics: dict[str, dict[str, float]] = {}
    if waiting is not None:
        metrics["waiting_s"] = {f"r{i}": seconds for i, seconds in enumerate(waiting)}
        metrics["busy"] = {f"r{i}": share for i, share in enumerate(busy or [])}
    context: Any = SimpleNamespace(
        aggregated_metrics=metrics, target_num_replicas=n_now, total_num_requests=n_requests, policy_state={}
    )
    return waiting_work(context)[0]


@pytest.mark.parametrize(
    ("n_now", "waiting", "busy", "expected"),
    [
        (1, [0.0], [0.0], 1),  # quiet
        (1, [0.4], [1.0], 1),  # one client that asks again and again is served by one replica
        (1, [2.6], [1.0], 6),  # a step of load
        (3, [0.1, 0.1, 0.1], [0.9, 0.8, 0.9], 3),  # it fits, because there are three
        (3, [0.0, 0.0, 0.0], [0.3, 0.3, 0.3], 2),  # two would do
        (3, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 1),  # over
    ],
)
def test_replicas_follow_waiting_and_running_work(
    n_now: int, waiting: list[float], busy: list[float], expected: int
) -> None:
    assert wanted(n_now, waiting, busy) == expected


def test_without_a_report_replicas_stay_and_the_first_one_is_started_for_requests() -> None:
    assert wanted(2, None) == 2
    assert wanted(0, None) == 0
    assert wanted(0, None, n_requests=5) == 1
