"""Which replica of a pool gets a model's call: rendezvous hashing, the same answer in every router without talking.

Each caller works out one order of the replicas per model; copy 0 of a model lives on the first, copy 1 on the
second, and so on. A replica that is gone passes the call to the next in that order; so does one that is known to be
full, or that could not be reached a moment ago, without being asked again while another could serve. Serve pickles
this module by value into every process that holds a handle: it shares no state with our other modules.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

_MAX_ORDERS = 10_000
_SHUNNED_S = 1.0  # how long one that could not be reached is asked last: by then Serve has told whether it died


def rank(key: str, replica_ids: Sequence[str]) -> list[str]:
    """Order replicas for a model by highest random weight (Thaler & Ravishankar, 1998).

    A replica that joins or leaves moves only the models for which it is, or was, first.
    """
    return sorted(
        replica_ids, key=lambda replica: hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()
    )


class ModelRouter(RequestRouter):
    """Routes calls by their `multiplexed_model_id`; calls without one go to the least loaded replica."""

    def initialize_state(self, **_: Any) -> None:
        """Start without any order worked out (Serve calls this once)."""
        self._orders: dict[str, list[str]] = {}  # by model, of the replicas below
        self._known: frozenset[str] = frozenset()
        self._shunned: dict[ReplicaID, float] = {}  # until when

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """Take note of a replica that could not be reached (Serve calls this)."""
        super().on_replica_actor_unavailable(replica_id)
        now = self._get_curr_time_s()
        self._shunned = {known: until for known, until in self._shunned.items() if until > now}
        self._shunned[replica_id] = now + _SHUNNED_S

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order they should be tried, one a rank; together at last those that look taken.

        Serve waits for each rank in turn to say how full it is, unless it knows that it is not.
        """
        if pending_request is None or not pending_request.metadata.multiplexed_model_id:
            return [candidate_replicas]
        # Without this the base class asks again at once, as long as all replicas are full.
        pending_request.routing_context.should_backoff = True
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        order = self._order(pending_request.metadata.multiplexed_model_id, frozenset(by_id))
        first = pending_request.kwargs.get("copy", 0) % max(len(order), 1)
        ordered = [by_id[replica] for replica in order[first:] + order[:first]]
        last = [replica for replica in ordered if self._looks_taken(replica)]
        return [*([replica] for replica in ordered if replica not in last), last]

    def _looks_taken(self, replica: RunningReplica) -> bool:
        length = self.replica_queue_len_cache.get(replica.replica_id)
        is_full = length is not None and length >= replica.max_ongoing_requests
        return is_full or self._shunned.get(replica.replica_id, 0.0) > self._get_curr_time_s()

    def _order(self, key: str, replicas: frozenset[str]) -> list[str]:
        """Return a model's order, worked out once as long as the replicas are the same (100 cost a tenth of a ms)."""
        if replicas != self._known:
            self._known, self._orders = replicas, {}
        if key not in self._orders:
            if len(self._orders) >= _MAX_ORDERS:
                self._orders.clear()
            self._orders[key] = rank(key, list(replicas))
        return self._orders[key]
