"""The same models behind Ray Serve's own `@serve.multiplexed`, as its documentation has it: what multiplex.py compares.

    HTTP ─▶ Front ─ handle with multiplexed_model_id ─▶ Models: @serve.multiplexed loads, @serve.batch gathers

Models are loaded and run by transformers alone, as anybody would: same files, same number of models in memory, same
routing defaults as Ray Serve ships them.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request


class Models:
    """One replica: at most `max_models` in memory."""

    def __init__(self, folder: str) -> None:
        import torch

        torch.set_num_threads(1)
        self._folder = Path(folder)
        self._device = ThreadPoolExecutor(1)
        self._n_loads = 0

    async def load(self, name: str) -> Any:
        """Load one model; `build` wraps this with @serve.multiplexed."""
        self._n_loads += 1
        return await asyncio.to_thread(_load, self._folder / name)

    async def answer(self, texts: list[str]) -> list[Any]:
        """Answer texts for one model; `build` wraps this with @serve.batch."""
        model = await self.load(serve.get_multiplexed_model_id())
        return await asyncio.get_running_loop().run_in_executor(self._device, _answer, *model, texts)

    async def __call__(self, text: str) -> float:
        """Answer one text."""
        return await self.answer(text)  # type: ignore[arg-type,return-value]  # serve.batch takes one, gives one

    async def loads(self) -> int:
        """Return how many loads there were."""
        return self._n_loads


def _load(path: Path) -> Any:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    return tokenizer, AutoModelForMaskedLM.from_pretrained(path).eval()


def _answer(tokenizer: Any, model: Any, texts: list[str]) -> list[float]:
    """Return the score of the likeliest word in place of each text's mask."""
    import torch

    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        logits = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
        best: list[float] = logits.softmax(-1).max(-1).values.tolist()
    return best


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
