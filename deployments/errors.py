"""Every error that can reach a client; raised anywhere, rendered by each protocol in its own envelope.

    ServeError                  500 internal
    ├── InvalidInput            400 invalid_input          a field is wrong: `field` says which
    │   ├── InputTooLong        400 input_too_long         more tokens or items than the model takes
    │   └── EmptyInput          400 empty_input            a list of nothing
    ├── Unauthenticated         401 unauthenticated        no key or token, or one that is not valid (any more)
    ├── PermissionDenied        403 permission_denied      known, but without a scope for this action or model
    ├── ModelNotFound           404 model_not_found
    ├── RouteNotFound           404 route_not_found
    ├── MethodNotAllowed        405 method_not_allowed
    ├── BodyTooSlow             408 body_too_slow
    ├── BodyTooLarge            413 body_too_large
    ├── HeadersTooLarge         431 headers_too_large
    ├── UnsupportedEncoding     415 unsupported_encoding
    ├── NotServed               501 not_served             a part of a protocol that is not here
    ├── Overloaded              429 overloaded             retry after `retry_after_s`
    │   └── RateLimited         429 rate_limited           a limit of this caller is used up: `limit` says which
    ├── EngineFailure           500 engine_failure         the model raised on this input
    ├── ModelUnavailable        503 model_unavailable      cannot load; `reason` says why
    │   ├── ModelLoading        503 model_loading          enough requests wait for its load; retry when it is done
    │   └── CircuitOpen         503 circuit_open           it kept failing and is left alone for a while
    ├── IdentityUnavailable     503 identity_unavailable   credentials cannot be checked now
    ├── LimitsUnavailable       503 limits_unavailable     limits cannot be counted, and are closed then
    ├── PoolUnavailable         503 pool_unavailable       no replica could be reached
    │   └── ReplicaLost         503 replica_lost           a replica died with the request on board
    └── DeadlineExceeded        504 deadline_exceeded

Subclasses hold class attributes only: anything cleverer does not survive pickling through Ray. Across a Ray
handle ``str(exc)`` is a remote traceback, so render from ``code``, ``message`` and ``details``.
"""

from typing import ClassVar, Self

from pydantic import JsonValue


class ServeError(Exception):
    """Base of all errors shown to clients: a message in lower case and JSON details."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: JsonValue) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, JsonValue] = details

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.details)

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which a retry makes sense, if known."""
        wait = self.details.get("retry_after_s")
        return float(wait) if isinstance(wait, int | float) else None

    def after(self, wait_s: float) -> Self:
        """Return the same error, to be tried again after `wait_s`."""
        return type(self)(self.message, **{**self.details, "retry_after_s": round(wait_s, 3)})


def _rebuild(cls: type[ServeError], message: str, details: dict[str, JsonValue]) -> ServeError:
    return cls(message, **details)


class InvalidInput(ServeError):
    """The request is wrong; `details["field"]` names where."""

    status = 400
    code = "invalid_input"


class InputTooLong(InvalidInput):
    """More tokens or items than the model accepts."""

    code = "input_too_long"


class EmptyInput(InvalidInput):
    """Nothing to work on; TEI's clients tell it from wrong input."""

    code = "empty_input"


class Unauthenticated(ServeError):
    """Nobody we know: no credential, or one that is wrong, expired or revoked."""

    status = 401
    code = "unauthenticated"


class PermissionDenied(ServeError):
    """Somebody we know, without a scope for this."""

    status = 403
    code = "permission_denied"


class ModelNotFound(ServeError):
    """No such model, or no such version of it."""

    status = 404
    code = "model_not_found"


class RouteNotFound(ServeError):
    """No endpoint at this path."""

    status = 404
    code = "route_not_found"


class MethodNotAllowed(ServeError):
    """The path exists with another method; `details["allow"]` lists them."""

    status = 405
    code = "method_not_allowed"


class BodyTooLarge(ServeError):
    """The request body is over the configured limit."""

    status = 413
    code = "body_too_large"


class BodyTooSlow(ServeError):
    """The request body did not arrive in time."""

    status = 408
    code = "body_too_slow"


class HeadersTooLarge(ServeError):
    """Too many request headers, or too long ones."""

    status = 431
    code = "headers_too_large"


class Overloaded(ServeError):
    """The queue is full; try again after `details["retry_after_s"]`."""

    status = 429
    code = "overloaded"
    retryable = True


class RateLimited(Overloaded):
    """A limit of this caller is used up, whatever the load is; `details["limit"]` names it."""

    code = "rate_limited"
    retryable = False


class UnsupportedEncoding(ServeError):
    """The body's Content-Encoding is none that is understood here."""

    status = 415
    code = "unsupported_encoding"


class NotServed(ServeError):
    """Part of a protocol that this server does not have, and says so."""

    status = 501
    code = "not_served"


class EngineFailure(ServeError):
    """The model itself raised while working on this input."""

    status = 500
    code = "engine_failure"


class ModelUnavailable(ServeError):
    """The model cannot be loaded now; `details["reason"]` says why."""

    status = 503
    code = "model_unavailable"
    retryable = True


class ModelLoading(ModelUnavailable):
    """The model is being loaded, and as many requests as may wait for that do; nothing is wrong with it."""

    code = "model_loading"


class CircuitOpen(ModelUnavailable):
    """The model keeps failing, and is not asked again before `details["retry_after_s"]`."""

    code = "circuit_open"


class IdentityUnavailable(ServeError):
    """Whoever vouches for callers cannot be reached."""

    status = 503
    code = "identity_unavailable"
    retryable = True


class LimitsUnavailable(ServeError):
    """The counters of the limits cannot be reached."""

    status = 503
    code = "limits_unavailable"
    retryable = True


class PoolUnavailable(ServeError):
    """No replica of the model's pool can be reached."""

    status = 503
    code = "pool_unavailable"
    retryable = True


class ReplicaLost(PoolUnavailable):
    """The replica died with the request on board: safe to send once more."""

    code = "replica_lost"


class DeadlineExceeded(ServeError):
    """The request's time ran out before an answer was ready."""

    status = 504
    code = "deadline_exceeded"
    retryable = True
