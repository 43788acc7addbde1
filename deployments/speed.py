"""How long a batch takes, learned from those that ran: `overhead + cost × rate`, and how large one should be.

Recent batches count more, so that the estimate follows a machine that gets busy. Pure arithmetic; one a batch queue.
"""

import math

# What a forward pass costs before its first token, in tokens, until measured (all-MiniLM-L6-v2 on one core: 48 padded).
OVERHEAD_TOKENS = 48.0
# A batch is large enough when the overhead is a twentieth of it: a larger one gains little, and its texts wait longer.
OVERHEAD_SHARE = 0.05
MIN_BUDGET, MAX_BUDGET = 512, 2**24
# A fit through noisy batches finds too little overhead now and then. As long as such a batch is short, the budget that
# goes with the overhead above is the least: half of it costs a thirtieth of the texts a second.
_SHORT_S = 0.3
_FORGET = 0.95  # weight of the past at each new batch
_STANDSTILL = 8.0  # times what was predicted is no batch's own time: the machine slept, the container was frozen
_SPREAD = 0.04  # squared relative spread of costs from which a line can be fitted


class Speed:
    """A straight line through (cost, seconds) of the batches that ran."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0  # decayed sums
        self.overhead_s = 0.0
        self.rate_s = 0.0  # seconds a unit of cost takes; both 0.0 before the first batch

    def learn(self, cost: int, seconds: float) -> None:
        """Take one batch into account; what nobody could have predicted, only in part."""
        if expected := self.predict(cost):
            seconds = min(seconds, _STANDSTILL * expected)
        self._n = self._n * _FORGET + 1
        self._x = self._x * _FORGET + cost
        self._y = self._y * _FORGET + seconds
        self._xx = self._xx * _FORGET + cost * cost
        self._xy = self._xy * _FORGET + cost * seconds
        self._fit()

    @property
    def budget(self) -> int:
        """The cost up to which filling a batch pays."""
        usual = OVERHEAD_TOKENS / OVERHEAD_SHARE
        if not self._n:
            return int(usual)
        rate_s = max(self.rate_s, 1e-12)
        least = max(min(usual, _SHORT_S / rate_s), MIN_BUDGET)
        return int(min(max(self.overhead_s / rate_s / OVERHEAD_SHARE, least), MAX_BUDGET))

    def predict(self, cost: float, n_batches: float = 1.0) -> float:
        """Return the seconds that work of this cost takes in so many batches; 0.0 before the first one."""
        return self.overhead_s * math.ceil(n_batches) + cost * self.rate_s

    def _fit(self) -> None:
        cost, seconds = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - cost * cost
        if spread > _SPREAD * cost * cost:
            self.rate_s = max((self._xy / self._n - cost * seconds) / spread, 0.0)
        else:  # batches all alike: overhead as on the machine above
            self.rate_s = seconds / (cost + OVERHEAD_TOKENS)
        self.overhead_s = max(seconds - self.rate_s * cost, 0.0)
