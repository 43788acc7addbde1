"""Which copies of a model still answer. One that says nothing for far longer than usual may be frozen.

New calls then go to the next replica at once, and what is on board is asked for there as well. Pure; one object a lane,
for `forwarder.py`.
"""

from dataclasses import dataclass, field

_SHORTEST_S = 3.0  # nobody is suspected sooner
_USUAL = 4.0  # times the slowest call of late
_LOADS = 5.0  # times the load that it may be waiting for, and at least
_SHORTEST_LOAD_S = 10.0
_SUSPECTED_S = (
    10.0  # how long others are asked first: by then it has answered, or Serve has noticed, or it is tried again
)
_FADE = 0.98  # of the slowest call, with each that is faster


@dataclass(slots=True)
class Silence:
    """What is known of the copies of one model, by number."""

    _heard_at: dict[int, float] = field(default_factory=dict)
    _suspected_until: dict[int, float] = field(default_factory=dict)
    _slowest_s: float = 0.0

    def patience_s(self, load_s: float) -> float:
        """Return how long a call may say nothing; `load_s` is the time of the load it waits for, 0.0 if for none."""
        loading_s = max(_LOADS * load_s, _SHORTEST_LOAD_S) if load_s else 0.0
        return max(_SHORTEST_S, _USUAL * self._slowest_s, loading_s)

    def heard(self, copy: int, now: float, sent_at: float) -> None:
        """Take note of answers of a copy to what was sent then."""
        self._heard_at[copy] = now
        self._suspected_until.pop(copy, None)
        self._slowest_s = max(now - sent_at, self._slowest_s * _FADE)

    def silent_s(self, copy: int, now: float, sent_at: float) -> float:
        """Return for how long a copy that was sent something then has said nothing, to anybody."""
        return now - max(self._heard_at.get(copy, sent_at), sent_at)

    def suspect(self, copy: int, now: float) -> None:
        """Ask others first for a while."""
        self._suspected_until[copy] = now + _SUSPECTED_S

    def instead_of(self, copy: int, n_replicas: int, now: float) -> int:
        """Return the copy, or where it is suspected the next replica that is not, if there is one."""
        for other in range(copy, copy + n_replicas):
            if self._suspected_until.get(other % n_replicas, 0.0) <= now:
                return other % n_replicas
        return copy
