"""Placement in virtual time: real forwarders, the real order of replicas, a real residency in each replica."""

import asyncio
from collections.abc import AsyncGenerator

import virtual_time
from test_residency import Loader, spec

from deployments.residency import Residency
from deployments.router import rank
from deployments.types import InferRequest, InferResult, Outcome, Timings
from serve_app.forwarder import Forwarder
from serve_app.lanes import COPY_REQUESTS, MAX_REQUESTS, Call, Target

LOAD_S, RUN_S = 2.0, 0.05


class Cluster:
    """Replicas behind ingress replicas that do not talk to one another."""

    def __init__(self, n_replicas: int, n_ingress: int) -> None:
        clock = asyncio.get_running_loop().time
        self.loaders = {f"r{i}": Loader() for i in range(n_replicas)}
        for loader in self.loaders.values():
            loader.load_s = {"m": LOAD_S}
        self._replicas = {name: Residency(100, loader, clock=clock) for name, loader in self.loaders.items()}
        self._devices = {name: asyncio.Lock() for name in self.loaders}
        self.served: dict[str, int] = {}
        self.ingress = [Forwarder(self._send, clock) for _ in range(n_ingress)]

    async def _send(self, call: Call) -> AsyncGenerator[list[tuple[int, Outcome]], None]:
        order = rank(call.target.key, list(self.loaders))
        name = order[call.copy % len(order)]
        clock = asyncio.get_running_loop().time
        began = clock()
        async with self._replicas[name].lease(spec("m")):
            timings = Timings(load_s=clock() - began)
            async with self._devices[name]:
                await asyncio.sleep(RUN_S if call.requests else 0)
            self.served[name] = self.served.get(name, 0) + len(call.requests)
            yield [(index, InferResult("m", "1", {}, timings=timings)) for index in range(len(call.requests))]

    async def ask(self, number: int) -> float:
        """Ask through one of the ingress replicas; return the seconds it took."""
        clock = asyncio.get_running_loop().time
        began = clock()
        target = Target("pool", "m:1", n_replicas=len(self.loaders))
        await self.ingress[number % len(self.ingress)].forward(target, InferRequest("m", {}), began + 60)
        return clock() - began

    async def aclose(self) -> None:
        for ingress in self.ingress:
            await ingress.aclose()

    @property
    def holders(self) -> list[str]:
        return [name for name, loader in self.loaders.items() if loader.loaded]


def test_a_cold_model_asked_100_times_at_once_on_8_replicas_loads_once() -> None:
    async def main() -> None:
        cluster = Cluster(n_replicas=8, n_ingress=3)
        took = await asyncio.gather(*(cluster.ask(n) for n in range(100)))
        assert cluster.holders == [rank("m:1", list(cluster.loaders))[0]]
        assert sum(len(loader.loaded) for loader in cluster.loaders.values()) == 1
        assert max(took) < LOAD_S + 1
        await cluster.aclose()

    virtual_time.run(main)


def test_a_hot_model_spreads_over_copies_that_ingress_replicas_agree_on() -> None:
    async def main() -> None:
        cluster = Cluster(n_replicas=4, n_ingress=2)
        await cluster.ask(0)
        n_many = 2 * (COPY_REQUESTS * 4 + 4 * MAX_REQUESTS)
        await asyncio.gather(*(cluster.ask(n) for n in range(n_many)))
        await asyncio.sleep(LOAD_S * 3)
        await asyncio.gather(*(cluster.ask(n) for n in range(n_many)))
        order = rank("m:1", list(cluster.loaders))
        assert set(cluster.holders) == set(order[: len(cluster.holders)]), "the first ones of the model's order"
        assert len(cluster.holders) > 1
        assert all(len(loader.loaded) <= 1 for loader in cluster.loaders.values())
        assert len([name for name, n in cluster.served.items() if n]) > 1
        await cluster.aclose()

    virtual_time.run(main)


def test_no_request_of_a_hot_model_waits_for_a_copy_to_load() -> None:
    async def main() -> None:
        cluster = Cluster(n_replicas=4, n_ingress=1)
        await cluster.ask(0)
        n_calls = 8
        took = await asyncio.gather(*(cluster.ask(n) for n in range(n_calls * MAX_REQUESTS)))
        assert len(cluster.holders) == 1 or max(took) < LOAD_S
        assert max(took) < (n_calls + 2) * RUN_S
        await cluster.aclose()

    virtual_time.run(main)
