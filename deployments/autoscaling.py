"""How many replicas a pool should have, by the predicted seconds of work that wait for it.

Named in YAML as `autoscaling_config.policy.policy_function: deployments.autoscaling:waiting_work`. Coalesced calls
hide load from Serve's own request counts, so replicas report `waiting_s`, work queued in them and in the forwarders
upstream, and `busy`, the share of time they worked (`Pool.record_autoscaling_stats`). Runs in Serve's controller every
0.1 s; Serve applies factors, delays and bounds around it.
"""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

TARGET_WAITING_S = 0.5  # work a replica may have waiting before another one is worth its cost
TARGET_BUSY = 0.7  # what the replicas that stay may be busy for one to leave


def waiting_work(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Return the desired number of replicas and the (unused) policy state.

    Waiting work adds replicas. Being busy keeps those there are, and adds none: under a load that fits, nothing waits,
    and replicas would leave one after the other until something does again.
    """
    metrics = context.aggregated_metrics or {}
    waiting = metrics.get("waiting_s") or {}
    if not waiting:
        # Nothing reported yet, or no replica at all: hold, and start one if requests wait for the first.
        wanted = max(context.target_num_replicas, 1 if context.total_num_requests > 0 else 0)
        return wanted, context.policy_state
    for_waiting = math.ceil(sum(waiting.values()) / TARGET_WAITING_S)
    for_busy = math.ceil(sum((metrics.get("busy") or {}).values()) / TARGET_BUSY)
    return max(1, for_waiting, min(for_busy, context.target_num_replicas)), context.policy_state
