"""How many replicas a pool should have, by the predicted seconds of work that wait for it.

Named in YAML as `autoscaling_config.policy.policy_function: deployments.autoscaling:waiting_work`. Coalesced calls
hide load from Serve's own request counts, so replicas report `waiting_s` (`Pool.record_autoscaling_stats`). Runs in
Serve's controller every 0.1 s; Serve applies factors, delays and bounds around it.
"""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

TARGET_WAITING_S = 0.5  # work a replica may have waiting before another one is worth its cost


def waiting_work(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Return the desired number of replicas and the (unused) policy state."""
    waiting = (context.aggregated_metrics or {}).get("waiting_s") or {}
    if not waiting:
        # Nothing reported yet, or no replica at all: hold, and start one if requests wait for the first.
        wanted = max(context.target_num_replicas, 1 if context.total_num_requests > 0 else 0)
        return wanted, context.policy_state
    return max(1, math.ceil(sum(waiting.values()) / TARGET_WAITING_S)), context.policy_state
