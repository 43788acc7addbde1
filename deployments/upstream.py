"""What waits in forwarders for calls to a replica, as they said with their last call. Read for autoscaling."""

from deployments.types import Clock

_HEARSAY_S = 10.0  # how long a sender's word counts


class Upstream:
    """Requests that wait in forwarders for calls to this replica, as last heard; old word counts no more."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heard: dict[str, dict[str, tuple[int, float]]] = {}  # by model and sender: how many, and when

    def heard(self, key: str, sender: str, n: int) -> None:
        """Take a sender's word."""
        self._heard.setdefault(key, {})[sender] = (n, self._clock())

    def n_waiting(self, key: str) -> int:
        """Return how many wait for a model."""
        since = self._clock() - _HEARSAY_S
        known = {sender: (n, at) for sender, (n, at) in self._heard.get(key, {}).items() if n and at > since}
        self._heard[key] = known
        return sum(n for n, _ in known.values())
