"""Memory is given back: a replica that loads and evicts all day long does not grow."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build

from deployments.engines import give_back, set_up_process
from deployments.replica import PoolReplica
from deployments.spec import PoolArgs
from deployments.types import InferRequest, InferResult, text_array

WARM_UP, CYCLES, SLACK = 30, 300, 0.05
N_MODELS = 3


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.fixture(params=[0, 2**30], ids=["from disk", "through host RAM"])
async def replica(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PoolReplica]:
    folder = build("bert-classifier", tmp_path / "m")
    set_up_process(1)
    made = PoolReplica(PoolArgs(budget_bytes=200_000, ram_bytes=request.param, cache_dir=str(tmp_path), threads=1))
    entry = {"task": "text-classification", "source": {"path": str(folder)}}
    made.configure({"models": [{"name": f"m{i}", **entry} for i in range(N_MODELS)]})
    yield made
    await made.aclose()


@pytest.mark.timeout(300)
async def test_three_hundred_loads_and_evictions_leave_memory_where_it_was(
    replica: PoolReplica,
) -> None:
    """The budget holds one of the models, so that every request evicts one and loads another."""

    async def cycles(n: int) -> int:
        for i in range(n):
            name = f"m{i % N_MODELS}"
            asked = [InferRequest(name, {"text": text_array(["a cat"])})]
            async for [(_, outcome)] in replica.infer_many(f"{name}:1", asked):
                assert isinstance(outcome, InferResult), outcome
        await asyncio.to_thread(give_back)
        return resident_bytes()

    before = await cycles(WARM_UP)
    after = await cycles(CYCLES)
    assert after <= before * (1 + SLACK), f"{before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after"


@pytest.mark.parametrize("name", ["sentence-bert", "bert-classifier", "roberta-masked", "gpt2-classifier", "vit"])
def test_a_closed_engine_leaves_no_garbage(name: str, tmp_path: Path) -> None:
    import gc
    import weakref

    from deployments.engines import load_engine
    from deployments.spec import ModelSpec

    tasks = {"sentence-bert": "feature-extraction", "roberta-masked": "fill-mask", "vit": "image-classification"}
    entry = {"name": "m", "task": tasks.get(name, "text-classification"), "source": {"path": str(tmp_path / name)}}
    engine: Any = load_engine(build(name, tmp_path / name), ModelSpec.model_validate(entry), "cpu")
    engine.warm_up()
    gc.collect()
    gc.disable()
    try:
        model: Callable[[], Any] = weakref.ref(engine._model)
        engine.close()
        assert model() is None
    finally:
        gc.enable()
