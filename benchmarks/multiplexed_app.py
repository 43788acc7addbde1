"""The same models behind Ray Serve's own `@serve.multiplexed`, as its documentation has it: what multiplex.py compares.

    HTTP ─▶ Front ─ handle with multiplexed_model_id ─▶ Models: @serve.multiplexed loads, @serve.batch gathers

Same engine code, same files, same number of models in memory, same routing defaults as Ray Serve ships them.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request

from deployments.engines import load_engine, set_up_process
from deployments.spec import ModelSpec
from deployments.types import InferRequest, text_array


class Models:
    """One replica: at most `max_models` in memory."""

    def __init__(self, folder: str) -> None:
        set_up_process(1)
        self._folder = Path(folder)
        self._device = ThreadPoolExecutor(1)
        self._n_loads = 0

    async def load(self, name: str) -> Any:
        """Load one model; `build` wraps this with @serve.multiplexed."""
        self._n_loads += 1
        path = self._folder / name
        spec = ModelSpec.model_validate({"name": name, "task": "fill-mask", "source": {"path": str(path)}})
        return await asyncio.to_thread(load_engine, path, spec, "cpu")

    async def answer(self, texts: list[str]) -> list[Any]:
        """Answer texts for one model; `build` wraps this with @serve.batch."""
        engine = await self.load(serve.get_multiplexed_model_id())
        request = InferRequest("m", {"text": text_array(texts)})

        def work() -> Any:
            return engine.finish(request, engine.run(engine.prepare(request)))

        outputs = await asyncio.get_running_loop().run_in_executor(self._device, work)
        return [float(score[0]) for score in outputs["score"]]

    async def __call__(self, text: str) -> float:
        """Answer one text."""
        return await self.answer(text)  # type: ignore[arg-type,return-value]  # serve.batch takes one, gives one

    async def loads(self) -> int:
        """Return how many loads there were."""
        return self._n_loads


class Front:
    """The HTTP door."""

    def __init__(self, models: Any) -> None:
        self._models = models

    async def __call__(self, request: Request) -> Any:
        """Answer POST /{model} with a text as body; GET /loads tells how many loads there were."""
        if request.method == "GET":
            return sum(await self._models.broadcast("loads").results_async())
        name = request.url.path.rpartition("/")[2]
        text = (await request.body()).decode()
        return await self._models.options(multiplexed_model_id=name).remote(text)


def build(args: dict[str, Any]) -> Any:
    """Return the application; `args`: folder, max_models (a replica), n_replicas, num_cpus."""

    class Bounded(Models):  # made here, where the number is known: so it is pickled with what the decorators hold
        load = serve.multiplexed(max_num_models_per_replica=args["max_models"])(Models.load)
        answer = serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)(Models.answer)

    models = serve.deployment(
        Bounded,
        num_replicas=args["n_replicas"],
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": args["num_cpus"]},
        request_router_config={"request_routing_stats_period_s": 1},
    ).bind(args["folder"])
    return serve.deployment(Front, max_ongoing_requests=1000, ray_actor_options={"num_cpus": args["num_cpus"]}).bind(
        models
    )
