"""The only path from a parsed request to an answer, whatever door it came through.

Called by `http.py` and by `ingress.py` for Python callers; knows no protocol. One line a policy, in this order:
resolve the model → set the deadline → forward → record.
"""

from collections.abc import Awaitable, Callable

from deployments.errors import InvalidInput, ServeError
from deployments.types import MONOTONIC, Clock, InferRequest, InferResult
from serve_app.config import EndpointConfig
from serve_app.forwarder import Forwarder
from serve_app.registry import Registry
from serve_app.telemetry import IngressMetrics


class Gateway:
    """Answers requests. `gather` renders the metrics of all replicas of the endpoint and its pools."""

    def __init__(
        self,
        registry: Registry,
        forwarder: Forwarder,
        metrics: IngressMetrics,
        gather: Callable[[], Awaitable[bytes]],
        clock: Clock = MONOTONIC,
    ) -> None:
        self.models = registry
        self.config = EndpointConfig()
        self._forwarder = forwarder
        self._metrics = metrics
        self._gather = gather
        self._clock = clock

    async def infer(self, request: InferRequest) -> InferResult:
        """Answer one request.

        Raises:
            ServeError: whatever went wrong, ready to be rendered.
        """
        started = self._clock()
        model = self.models.resolve(request.model, request.version)
        try:
            deadline = started + self._timeout_s(request, model.timeout_s)
            result = await self._forwarder.forward(self.models.target(model), request, deadline)
        except ServeError as exc:
            self._metrics.request(model, exc.code, self._clock() - started)
            raise
        self._metrics.request(model, "ok", self._clock() - started)
        return result

    async def metrics(self) -> bytes:
        """Return the metrics of all replicas in Prometheus' text format."""
        return await self._gather()

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one finished HTTP request."""
        self._metrics.http(method, route, status, seconds)

    def _timeout_s(self, request: InferRequest, default_s: float) -> float:
        """Return the time a request may take: its own wish or the model's default, capped by both and the operator."""
        if request.timeout_s is None:
            return min(default_s, self.config.max_timeout_s)
        if request.timeout_s <= 0:
            raise InvalidInput("timeout must be greater than 0", field="timeout_s")
        return min(request.timeout_s, default_s, self.config.max_timeout_s)
