"""The short way past Serve's handling of a request: when it is open, what it counts, and clients who leave."""

import asyncio
import inspect
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import RequestMetadata
from ray.serve._private.http_util import RequestIdMiddleware
from ray.serve._private.replica import Replica, ReplicaMetricsManager
from ray.serve._private.utils import Semaphore
from starlette.applications import Starlette

from serve_app.front import Front, long_way, middlewares
from serve_app.middleware import AccessLog
from serve_app.short_way import OURS, find


class Cycle:
    """What the HTTP server has of one request."""

    disconnected = False

    async def receive(self) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}


@dataclass
class App:
    """An app as Starlette makes it."""

    run: Any
    state: SimpleNamespace

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.run(scope, receive, send)


class Fake:
    """Serve's ingress replica, with the parts that the short way uses."""

    def __init__(self, app: Any, slots: int = 2, prefix: str = "/", ours: bool = True, **http_options: Any) -> None:
        self._user_callable_asgi_app: Any = App(app, SimpleNamespace(**{OURS: ours}))
        self._route_prefix = prefix
        self._semaphore = Semaphore(lambda: slots)
        self._metrics_manager = SimpleNamespace(_change_num_ongoing_requests=self.change)
        self._http_options = SimpleNamespace(request_timeout_s=None, **http_options)
        self._user_callable_wrapper = SimpleNamespace(_run_user_code_in_separate_thread=False)
        self.n_ongoing = self.n_serve = 0

    def change(self, request: RequestMetadata, delta: int) -> None:
        assert request.is_direct_ingress
        self.n_ongoing += delta

    async def _direct_ingress_asgi(self, scope: Any, receive: Any, send: Any) -> None:
        self.n_serve += 1
        await self._user_callable_asgi_app(scope, receive, send)

    @property
    def front(self) -> Front:
        return Front(RequestIdMiddleware(self._direct_ingress_asgi))


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    scope["seen"] = scope.get("root_path", "")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def ask(front: Front, path: str = "/v2", cycle: Cycle | None = None, **scope: Any) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": "http", "path": path, "method": "POST", "headers": [], **scope}
    await front(whole, (cycle or Cycle()).receive, send)
    return [*sent, whole]


def test_serve_has_what_the_short_way_needs() -> None:
    assert hasattr(Replica, "_direct_ingress_asgi")
    assert hasattr(ReplicaMetricsManager, "_change_num_ongoing_requests")
    source = inspect.getsource(sys.modules[Replica.__module__])
    for attribute in ("_user_callable_asgi_app", "_route_prefix", "_semaphore", "_metrics_manager", "_http_options"):
        assert f"self.{attribute}" in source


async def test_a_request_goes_past_serve_and_is_counted_while_it_lasts() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (serve.n_ongoing, serve._semaphore._value) == (1, 1)
        await answer(scope, receive, send)

    serve = Fake(app)
    start, body, _ = await ask(serve.front)
    assert (start["status"], body["body"]) == (200, b"ok")
    assert (serve.n_serve, serve.n_ongoing, serve._semaphore._value) == (0, 0, 0)


async def test_a_request_that_fails_leaves_no_count_behind() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a bug")

    serve = Fake(app)
    start, *_ = await ask(serve.front)
    assert start["status"] == 500
    assert (serve.n_serve, serve.n_ongoing, serve._semaphore._value) == (0, 0, 0)


async def test_what_finds_no_slot_waits_in_serves_queue() -> None:
    serve = Fake(answer, slots=0)
    await ask(serve.front)
    assert serve.n_serve == 1


@pytest.mark.parametrize("change", ["timeout", "thread", "inside"])
async def test_what_else_is_asked_of_serve_goes_its_way(change: str) -> None:
    serve = Fake(answer)
    if change == "timeout":
        serve._http_options.request_timeout_s = 5.0
    elif change == "thread":
        serve._user_callable_wrapper._run_user_code_in_separate_thread = True
    else:
        del serve._semaphore
    assert find(RequestIdMiddleware(serve._direct_ingress_asgi)) is None
    start, *_ = await ask(serve.front)
    assert (start["status"], serve.n_serve) == (200, 1)


async def test_another_server_and_another_app_go_serves_way() -> None:
    serve = Fake(answer)

    async def receive() -> Any:
        return await Cycle().receive()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await serve.front({"type": "http", "path": "/", "method": "GET", "headers": []}, receive, send)
    assert serve.n_serve == 1
    assert find(answer) is None


@pytest.mark.parametrize("other", ["an app of another team", "no ASGI app at all"])
async def test_other_applications_of_the_cluster_are_handled_by_serve(other: str) -> None:
    serve = Fake(answer, ours=False)
    front = serve.front
    if other == "no ASGI app at all":
        serve._user_callable_asgi_app = None
        assert find(RequestIdMiddleware(serve._direct_ingress_asgi)) is None
        return
    start, *_ = await ask(front)
    assert (start["status"], serve.n_serve) == (200, 1)


def test_our_app_says_that_it_is_ours(asgi: Starlette) -> None:
    assert getattr(asgi.state, OURS)


async def test_a_route_prefix_is_the_root_of_the_app_and_other_paths_are_serves() -> None:
    serve = Fake(answer, prefix="/ml")
    *_, scope = await ask(serve.front, "/ml/v2")
    assert (scope["seen"], serve.n_serve) == ("/ml", 0)
    *_, scope = await ask(serve.front, "/proxy/ml/v2", root_path="/proxy")
    assert (scope["seen"], serve.n_serve) == ("/proxy/ml", 0)
    await ask(serve.front, "/mlx")
    assert serve.n_serve == 1


async def test_a_client_who_leaves_has_the_work_cancelled_and_nobody_else() -> None:
    outcomes: dict[str, str] = {}
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await go.wait()
        except asyncio.CancelledError:
            outcomes[scope["path"]] = "cancelled"
            raise
        outcomes[scope["path"]] = "answered"
        await answer(scope, receive, send)

    serve = Fake(app, slots=9)
    front = serve.front
    cycles = [Cycle() for _ in range(3)]
    tasks = [asyncio.create_task(ask(front, f"/{i}", cycle)) for i, cycle in enumerate(cycles)]
    await asyncio.sleep(0)
    cycles[1].disconnected = True
    await asyncio.wait_for(tasks[1], 2)
    assert outcomes == {"/1": "cancelled"}
    assert serve.n_ongoing == 2
    go.set()
    await asyncio.gather(*tasks)
    assert outcomes == {"/0": "answered", "/1": "cancelled", "/2": "answered"}
    assert (serve.n_ongoing, serve._semaphore._value) == (0, 0)


async def test_whoever_else_cancels_a_request_is_obeyed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    serve = Fake(app)
    task = asyncio.create_task(ask(serve.front))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert serve.n_ongoing == 0


async def test_the_client_is_told_the_id_of_its_request_once_on_either_way() -> None:
    app = AccessLog(answer, observe=lambda *_: None)
    for serve in (Fake(app), Fake(app, slots=0)):
        for given in ([], [(b"x-request-id", b"mine")]):
            start, _, scope = await ask(serve.front, headers=list(given))
            told = [value for name, value in start["headers"] if name.lower() == b"x-request-id"]
            assert told == ([b"mine"] if given else [scope["serve_app.request_id"].encode()])


def test_an_operator_may_choose_the_long_way() -> None:
    serve = Fake(answer)
    app = RequestIdMiddleware(serve._direct_ingress_asgi)
    (short,), (long,) = middlewares(), long_way()
    for middleware, n_serve in ((short, 0), (long, 1)):
        front = middleware.cls(app, *middleware.args, **middleware.kwargs)
        asyncio.run(ask(front))  # type: ignore[arg-type]  # starlette says less of the class than it is
        assert serve.n_serve == n_serve
