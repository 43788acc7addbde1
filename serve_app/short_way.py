"""The short way of a request from the listening socket to our routes, past Serve's own handling of it.

Between the two Serve makes ids, a context, a task that watches the client and one that runs us, searches the headers
three times and the routes once, and writes metrics and a log record: more CPU time than all of ours. What is needed of
that is done here: slots (`max_ongoing_requests`), the count that autoscaling and draining go by, and clients who leave.
Whatever else was asked of Serve (its queue, a time limit, traces of its own) goes its way. Used by `front.py`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.serve._private.common import RequestMetadata, RequestProtocol
from ray.serve._private.tracing_utils import is_tracing_enabled
from starlette.types import ASGIApp, Receive, Scope, Send

OURS = "takes_short_way"  # set in the `state` of an app that needs nothing of Serve's handling
_log = logging.getLogger(__name__)
_COUNTED = RequestMetadata("", "", _request_protocol=RequestProtocol.HTTP, is_direct_ingress=True)
_LOOK_S = 0.05  # between looks at who has left


class ShortWay:
    """Runs the app of one ingress replica in the task of the HTTP server."""

    def __init__(self, replica: Any) -> None:
        """Take what is needed of Serve's replica; raises AttributeError if it is not as we know it."""
        self._app: ASGIApp = replica._user_callable_asgi_app
        self._prefix: str = (replica._route_prefix or "").rstrip("/")
        self._slots = replica._semaphore
        self._count: Callable[[RequestMetadata, int], None] = replica._metrics_manager._change_num_ongoing_requests
        self._leavers = Leavers()

    def is_open(self, scope: Scope, receive: Receive) -> bool:
        """Return whether a request may go this way now."""
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        is_ours = not self._prefix or path.startswith(f"{self._prefix}/")
        return is_ours and not self._slots.locked() and hasattr(getattr(receive, "__self__", None), "disconnected")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; returns without an answer if the client has left."""
        if self._prefix:
            scope["root_path"] = scope.get("root_path", "") + self._prefix
        await self._slots.acquire()
        self._count(_COUNTED, 1)
        ride = self._leavers.watch(receive.__self__)  # type: ignore[attr-defined]  # see is_open
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not ride.has_left:
                raise
            ride.task.uncancel()
        finally:
            self._leavers.forget(ride)
            self._count(_COUNTED, -1)
            self._slots.release()


class Ride:
    """A request on its way: the server's cycle of reading it and answering, and the task that is at it."""

    __slots__ = ("cycle", "has_left", "task")

    def __init__(self, cycle: Any) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request needs a task to be cancelled")
        self.cycle = cycle
        self.task = task
        self.has_left = False


class Leavers:
    """Cancels what is done for clients who have left, found by looking at all connections now and then.

    The server knows at once, but tells only who waits for it: that would be one more task a request.
    """

    def __init__(self) -> None:
        self._rides: set[Ride] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, cycle: Any) -> Ride:
        """Have the current task cancelled once `cycle.disconnected`."""
        ride = Ride(cycle)
        self._rides.add(ride)
        if self._timer is None:
            self._wind()
        return ride

    def forget(self, ride: Ride) -> None:
        """Stop watching."""
        self._rides.discard(ride)

    def _wind(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        for ride in [ride for ride in self._rides if ride.cycle.disconnected]:
            self._rides.discard(ride)
            ride.has_left = True
            ride.task.cancel()
        if self._rides:
            self._wind()


def find(app: Any) -> ShortWay | None:
    """Return the short way past Serve's handling `app`, if it is of a replica of ours that we know our way about in."""
    while (inner := getattr(app, "_app", None)) is not None:
        app = inner
    replica = getattr(app, "__self__", None)
    if replica is None or getattr(app, "__name__", "") != "_direct_ingress_asgi":
        return None  # one of Serve's proxies, which has no app of ours in its process
    try:
        if not getattr(getattr(replica._user_callable_asgi_app, "state", None), OURS, False):
            return None  # somebody else's application on the same cluster, which may need whatever Serve does
        wants_more = (
            is_tracing_enabled()
            or replica._http_options.request_timeout_s is not None
            or replica._user_callable_wrapper._run_user_code_in_separate_thread
        )
        way = None if wants_more else ShortWay(replica)
    except AttributeError as exc:
        _log.warning("requests go through Serve's own handling, whose inside is not as we know it: %s", exc)
        return None
    _log.info("requests go %s", "past Serve's own handling" if way else "through Serve's own handling, as it is set up")
    return way
