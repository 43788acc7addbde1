"""Silent replicas: when their requests are asked for elsewhere, and when waiting is better."""

import asyncio

import pytest
import virtual_time
from forwarder_cases import NEVER, request

from deployments.errors import DeadlineExceeded
from deployments.types import InferResult
from serve_app.forwarder import Forwarder
from serve_app.lanes import Call, Outcomes, Target


class Replicas:
    """Replicas by copy; frozen ones never answer, the others take `seconds`."""

    def __init__(self, *frozen: int, seconds: float = 0.1) -> None:
        self.frozen = set(frozen)
        self.seconds = seconds
        self.asked: list[tuple[int, list[str]]] = []
        self.n_cancelled = 0

    async def send(self, call: Call) -> Outcomes:
        self.asked.append((call.copy, [r.request_id for r in call.requests]))
        try:
            await asyncio.sleep(self.seconds if call.copy not in self.frozen else NEVER)
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        yield [(i, InferResult(r.request_id, "1", {})) for i, r in enumerate(call.requests)]


def test_a_frozen_holder_delays_nobody_for_long_while_another_could_serve() -> None:
    async def play() -> None:
        replicas, clock = Replicas(0), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        target = Target("pool", "m:1", n_replicas=2)

        async def ask(name: str) -> float:
            began = clock()
            assert (await forwarder.forward(target, request(name), began + 30)).model == name
            return clock() - began

        waited = await asyncio.gather(*(ask(str(n)) for n in range(40)))
        assert max(waited) < 4  # those that were on board, and those that waited for a call
        later = [await ask(f"later {n}") for n in range(10)]
        assert max(later) < 0.2  # goes elsewhere at once
        assert replicas.n_cancelled > 0  # nobody waits for the frozen one any more
        replicas.frozen.clear()
        await asyncio.sleep(20)
        await ask("after a while")
        assert replicas.asked[-1][0] == 0
        await forwarder.aclose()

    virtual_time.run(play)


def test_a_pinned_models_frozen_copy_is_left_out() -> None:
    async def play() -> None:
        replicas, clock = Replicas(1), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        target = Target("pool", "m:1", n_replicas=3, is_everywhere=True)
        asking = [forwarder.forward(target, request(str(n)), clock() + 30) for n in range(200)]
        await asyncio.gather(*asking)
        assert clock() < 5
        await forwarder.aclose()

    virtual_time.run(play)


@pytest.mark.parametrize(
    "target",
    [
        Target("pool", "m:1"),  # there is no other
        Target("pool", "m:1", n_replicas=2, load_s=4.0),  # it may be loading: twice would be a stampede
    ],
)
def test_a_slow_answer_is_waited_for_where_asking_another_would_not_help(target: Target) -> None:
    async def play() -> None:
        replicas, clock = Replicas(seconds=9.0), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        await forwarder.forward(target, request("a"), clock() + 30)
        assert [copy for copy, _ in replicas.asked] == [0]
        await forwarder.aclose()

    virtual_time.run(play)


def test_a_model_that_is_slow_is_not_taken_for_a_frozen_one_again() -> None:
    async def play() -> None:
        replicas, clock = Replicas(seconds=5.0), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        target = Target("pool", "m:1", n_replicas=2)
        for n in range(4):
            await forwarder.forward(target, request(str(n)), clock() + 30)
        assert [copy for copy, _ in replicas.asked] == [0, 1, 0, 0, 0]  # once, while nothing was known of it
        await forwarder.aclose()

    virtual_time.run(play)


def test_a_copy_that_answers_others_is_not_silent() -> None:
    async def play() -> None:
        clock = asyncio.get_running_loop().time
        asked: list[int] = []

        async def send(call: Call) -> Outcomes:
            asked.append(call.copy)
            await asyncio.sleep(8.0 if call.requests[0].request_id == "slow" else 0.5)
            yield [(i, InferResult("m", "1", {})) for i in range(len(call.requests))]

        forwarder = Forwarder(send, clock, has_silent=lambda _: True)
        target = Target("pool", "m:1", n_replicas=2)
        slow = asyncio.create_task(forwarder.forward(target, request("slow"), clock() + 30))
        await asyncio.sleep(0.1)
        for n in range(12):
            await forwarder.forward(target, request(str(n)), clock() + 30)
        await slow
        assert set(asked) == {0}
        await forwarder.aclose()

    virtual_time.run(play)


def test_two_silent_replicas_cost_an_answer_only_at_the_deadline() -> None:
    async def play() -> None:
        replicas, clock = Replicas(0, 1), asyncio.get_running_loop().time
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda _: True)
        with pytest.raises(DeadlineExceeded):
            await forwarder.forward(Target("pool", "m:1", n_replicas=2), request("a"), clock() + 20)
        assert clock() == pytest.approx(20)
        await asyncio.sleep(1)
        assert [copy for copy, _ in replicas.asked] == [0, 1, 0]  # the first once more, after a while
        assert replicas.n_cancelled == 3
        await forwarder.aclose()

    virtual_time.run(play)


def test_a_busy_replica_that_says_how_it_is_is_waited_for() -> None:
    async def play() -> None:
        replicas, clock = Replicas(0), asyncio.get_running_loop().time
        silent: set[str] = set()
        forwarder = Forwarder(replicas.send, clock, has_silent=lambda pool: pool in silent)
        target = Target("pool", "m:1", n_replicas=2)
        asked = asyncio.create_task(forwarder.forward(target, request("a"), clock() + 30))
        await asyncio.sleep(15)
        assert [copy for copy, _ in replicas.asked] == [0]
        silent.add("pool")
        await asked
        assert clock() < 17
        await forwarder.aclose()

    virtual_time.run(play)
