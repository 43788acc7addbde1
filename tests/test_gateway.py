"""Gateway: deadlines, and what is counted."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from deployments.errors import DeadlineExceeded, InvalidInput, ModelNotFound, PermissionDenied, ServeError
from deployments.orders import LOAD
from deployments.statistics import ModelStatistics
from deployments.types import (
    InferRequest,
    InferResult,
    ModelState,
    ModelStatus,
    Operation,
    Outcome,
    PoolStatus,
    Signature,
    Task,
)
from serve_app.access import authorise
from serve_app.config import EndpointConfig, PoolRef
from serve_app.context import Context
from serve_app.forwarder import Forwarder
from serve_app.gateway import Gateway
from serve_app.lanes import Call, Outcomes
from serve_app.policies import Answer, Policies, Work
from serve_app.principals import ANONYMOUS, CLUSTER, NOBODY, Principal, Scope
from serve_app.protocols.types import Action, Command
from serve_app.registry import Registry
from serve_app.routing import Plan
from serve_app.telemetry import IngressMetrics, render
from serve_app.traffic_config import Fallback, Shadow


class Case:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answer: Outcome | None = None
        self.commands: list[Command] = []
        self.control_s = 0.0
        registry = Registry()
        registry.configure({"p": PoolRef()}, {})
        status = ModelStatus("m", "1", Task.TENSOR, Signature((), ()), ModelState.READY, True, timeout_s=30.0)
        registry.update("p", PoolStatus((status,), {}, 1))
        self.counters = IngressMetrics()
        self.gateway = Gateway(registry, Forwarder(self.send), self.counters, self)

    async def send(self, call: Call) -> Outcomes:
        self.calls.append(call)
        yield [(index, self.answer or InferResult("m", "1", {})) for index in range(len(call.requests))]

    # What the gateway asks of its pools:

    async def metrics(self) -> bytes:
        return b"page"

    async def statistics(self) -> Mapping[str, ModelStatistics]:
        return {"m:1": ModelStatistics(inference_count=3)}

    async def infer(
        self, model: str = "m", timeout_s: float | None = None, principal: Principal = ANONYMOUS
    ) -> InferResult:
        self.context = Context(principal=principal)
        return await self.gateway.infer(request(model, timeout_s), self.context)

    async def command(self, command: Command) -> None:
        await asyncio.sleep(self.control_s)
        self.commands.append(command)

    def count(self, name: str, **labels: str) -> float:
        samples = [s for metric in self.counters.collect() for s in metric.samples if s.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())


def request(model: str = "m", timeout_s: float | None = None) -> InferRequest:
    return InferRequest(model, {"x": np.zeros(1)}, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("wish", "operator", "given"), [(None, 60.0, 30.0), (None, 5.0, 5.0), (2.0, 60.0, 2.0), (99.0, 60.0, 30.0)]
)
async def test_the_shortest_of_wish_model_and_operator_counts(
    wish: float | None, operator: float, given: float
) -> None:
    case = Case()
    case.gateway.configure(EndpointConfig(max_timeout_s=operator))
    await case.infer(timeout_s=wish)
    assert case.calls[0].timeouts_s[0] == pytest.approx(given, abs=0.1)


@pytest.mark.parametrize("wish", [0.0, -1.0])
async def test_a_timeout_must_be_positive(wish: float) -> None:
    with pytest.raises(InvalidInput, match="timeout"):
        await Case().infer(timeout_s=wish)


async def test_outcomes_are_counted_by_model_and_code() -> None:
    case = Case()
    await case.infer()
    case.answer = DeadlineExceeded("late")
    with pytest.raises(DeadlineExceeded):
        await case.infer()
    assert case.count("model_endpoint_requests_total", model="m", code="ok") == 1
    assert case.count("model_endpoint_requests_total", code="deadline_exceeded") == 1


async def test_a_command_is_passed_on_and_has_a_deadline() -> None:
    case = Case()
    command = Command(LOAD, (case.gateway.models.resolve("m"),))
    await case.gateway.control(command)
    assert case.commands == [command]
    case.gateway.configure(EndpointConfig(max_timeout_s=0.01))
    case.control_s = 10.0
    with pytest.raises(DeadlineExceeded, match=r"load was ordered, but is not done after 0\.01 s"):
        await case.gateway.control(command)


async def test_an_unknown_model_makes_no_new_metric() -> None:
    case = Case()
    with pytest.raises(ModelNotFound):
        await case.infer("nope")
    assert case.count("model_endpoint_requests_total") == 0


async def test_http_requests_are_counted_and_the_page_comes_from_everybody() -> None:
    case = Case()
    case.gateway.observe("GET", "/v2", 200, 0.01)
    assert case.count("model_endpoint_http_requests_total", route="/v2", status="200") == 1
    assert await case.gateway.metrics() == b"page"
    assert (await case.gateway.statistics())["m:1"].inference_count == 3


def test_replicas_are_told_apart_on_one_page() -> None:
    from deployments.metrics import ReplicaMetrics

    parts = []
    for replica in ("r1", "r2"):
        metrics = IngressMetrics()
        metrics.http("GET", "/v2", 200, 0.01)
        parts.append(("endpoint", ReplicaMetrics(replica, metrics.collect())))
    page = render(parts).decode()
    assert page.count("# TYPE model_endpoint_http_requests_total counter") == 1
    for replica in ("r1", "r2"):
        assert f'application="endpoint",method="GET",replica="{replica}",route="/v2",status="200"' in page


def scoped(*models: str, actions: tuple[Action, ...] = (Action.INFER, Action.READ)) -> Principal:
    return Principal("team-a", "k1", (Scope(frozenset(actions), models),), priority=-1)


@pytest.mark.parametrize("principal", [NOBODY, scoped("other*"), scoped("*", actions=(Action.READ,))])
async def test_a_model_out_of_scope_is_refused(principal: Principal) -> None:
    with pytest.raises(PermissionDenied, match="infer on model 'm'"):
        await Case().infer(principal=principal)


@pytest.mark.parametrize("principal", [CLUSTER, scoped("m"), scoped("m:1"), scoped("other", "m*")])
async def test_a_model_in_scope_is_answered_and_the_work_carries_whose_it_is(principal: Principal) -> None:
    case = Case()
    await case.infer(principal=principal)
    sent = case.calls[0].requests[0]
    assert (sent.tenant, sent.priority) == (principal.name, principal.priority)
    assert (case.context.model, case.context.version) == ("m", "1")


async def test_without_identity_everybody_is_anonymous_and_may_do_everything() -> None:
    case, context = Case(), Context(action=Action.ADMIN)
    await case.gateway.authenticate(context, {})
    assert context.principal is ANONYMOUS


async def test_a_principal_sees_only_what_it_may_use_and_learns_no_other_name() -> None:
    case = Case()
    seen = case.gateway.visible(Context(action=Action.READ, principal=scoped("else*")))
    assert seen.all() == ()
    for name, error in (("m", PermissionDenied), ("nope", PermissionDenied), ("else", ModelNotFound)):
        with pytest.raises(error) as caught:
            seen.resolve(name)
        assert "models: m" not in str(caught.value)
    everything = case.gateway.visible(Context(action=Action.READ, principal=scoped("*")))
    assert [model.key for model in everything.all()] == ["m:1"]


async def test_endless_names_are_neither_kept_nor_repeated() -> None:
    """Or else 4,096 requests of a megabyte each would stay in memory, as answers to what somebody may do."""
    case, name = Case(), "n" * 1_000_000
    limited = scoped("else*")
    for principal, version in ((limited, None), (limited, name), (scoped("*"), None), (scoped("*"), name)):
        with pytest.raises(ServeError) as caught:
            case.gateway.visible(Context(action=Action.READ, principal=principal)).resolve(name, version)
        assert len(caught.value.message) < 1_000
    assert sum(len(str(key)) for key in limited._known) < 10_000


async def test_an_alias_is_granted_by_its_own_name_only() -> None:
    model = Case().gateway.models.resolve("m")
    for principal, granted in ((scoped("chat"), True), (scoped("m*"), False), (scoped("*"), True)):
        if granted:
            authorise(principal, Action.INFER, "chat", model)
            continue
        with pytest.raises(PermissionDenied, match="'chat'"):
            authorise(principal, Action.INFER, "chat", model)


@pytest.mark.parametrize("operation", list(Operation))
async def test_only_an_inference_may_be_answered_or_shadowed_by_another_model(operation: Operation) -> None:
    case = Case()
    plans: list[Plan] = []

    class Router:
        def plan(self, request: InferRequest, context: Context) -> Plan:
            return Plan("m", case.gateway.models.resolve("m"), (Shadow(model="other"),), Fallback(to=("other",)))

    class Layer:
        async def answer(self, work: Work, compute: Answer) -> InferResult:
            plans.append(work.plan)
            return await compute(work)

        def configure(self, config: EndpointConfig) -> None:
            """Nothing."""

    policies = Policies(router=Router(), layers=(Layer(),))
    gateway = Gateway(case.gateway.models, Forwarder(case.send), case.counters, case, policies)
    await gateway.infer(replace(request(), operation=operation), Context(principal=ANONYMOUS))
    is_inference = operation is Operation.INFER
    assert (bool(plans[0].shadows), bool(plans[0].fallback)) == (is_inference, is_inference)
    assert case.calls[0].requests[0].operation is operation
