"""Triton's statistics and model_configuration, and what is answered as switched off."""

import httpx
import pytest
from edge_fakes import FakeGateway, status

from deployments.statistics import ModelStatistics, Statistics, merged
from deployments.types import Datatype, Signature, Task, TensorSpec, Timings


def counted() -> dict[str, ModelStatistics]:
    """Two replicas: one ran a batch of 3 and one of 1, the other a batch of 3 and failed once."""
    one, other = Statistics(lambda: 1000.5), Statistics(lambda: 2000.25)
    one.batch("mood:2", 3, 0.25)
    one.batch("mood:2", 1, 0.125)
    one.succeeded("mood:2", Timings(prepare_s=0.001, queue_s=0.002, run_s=0.003, finish_s=0.004), 0.010)
    other.batch("mood:2", 3, 0.25)
    other.failed("mood:2", 0.5)
    return merged([one.models, other.models])


async def test_statistics_are_the_sums_over_replicas(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.counted = counted()
    [line] = (await client.get("/v2/models/mood/versions/2/stats")).json()["model_stats"]
    assert (line["name"], line["version"], line["last_inference"]) == ("mood", "2", 2000250)
    assert (line["inference_count"], line["execution_count"]) == (7, 3)
    phases = line["inference_stats"]
    assert phases["success"] == {"count": 1, "ns": 10_000_000}
    assert phases["fail"] == {"count": 1, "ns": 500_000_000}
    shown = [phases[name]["ns"] / 1e6 for name in ("compute_input", "queue", "compute_infer", "compute_output")]
    assert shown == [1, 2, 3, 4]
    sizes = {batch["batch_size"]: batch["compute_infer"] for batch in line["batch_stats"]}
    assert sizes == {1: {"count": 1, "ns": 125_000_000}, 3: {"count": 2, "ns": 500_000_000}}


async def test_statistics_of_a_name_and_of_all(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    both = (await client.get("/v2/models/mood/stats")).json()["model_stats"]
    assert [(line["version"], line["inference_count"]) for line in both] == [("1", 0), ("2", 0)]
    every = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert len(every) == len(gateway.models.all())
    assert (await client.get("/v2/models/nope/stats")).status_code == 404


async def test_a_model_of_rows_tells_its_batch_and_leaves_the_first_size_out(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    rows = Signature((TensorSpec("x", Datatype.FP16, (-1, 3)),), (TensorSpec("y", Datatype.INT64, (-1, 2, -1)),))
    gateway.models._models += (status("rows", Task.TENSOR, rows, max_items=8),)
    config = (await client.get("/v2/models/rows/config")).json()
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP16", "dims": [3], "optional": False}]
    assert config["output"][0]["dims"] == [2, -1]
    assert config["dynamic_batching"] == {"preferred_batch_size": [8], "max_queue_delay_microseconds": 0}


async def test_a_model_of_texts_shows_whole_shapes(client: httpx.AsyncClient) -> None:
    config = (await client.get("/v2/models/minilm/versions/1/config")).json()
    assert config["max_batch_size"] == 0
    assert config["input"][0] == {"name": "text", "data_type": "TYPE_STRING", "dims": [-1], "optional": False}
    assert (await client.get("/v2/models/nope/config")).status_code == 404


async def test_only_what_works_is_named(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2")).json()["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "parameters",
        "statistics",
    ]


READS = [
    ("/v2/systemsharedmemory/status", []),
    ("/v2/systemsharedmemory/region/r/status", []),
    ("/v2/cudasharedmemory/status", []),
    ("/v2/trace/setting", {"trace_level": ["OFF"]}),
    ("/v2/models/minilm/trace/setting", {"trace_level": ["OFF"]}),
    ("/v2/logging", {"log_verbose_level": 0}),
]


@pytest.mark.parametrize(("path", "shown"), READS)
async def test_what_is_off_can_be_read(client: httpx.AsyncClient, path: str, shown: dict[str, object]) -> None:
    answer = (await client.get(path)).json()
    assert answer == shown or shown.items() <= answer.items()


@pytest.mark.parametrize(
    "path",
    [
        "/v2/systemsharedmemory/region/r/register",
        "/v2/cudasharedmemory/region/r/register",
        "/v2/trace/setting",
        "/v2/models/minilm/trace/setting",
        "/v2/logging",
        "/v2/repository/other/index",
        "/v2/repository/other/models/minilm/load",
        "/v2/repository/other/models/minilm/unload",
        "/v1/models/minilm:explain",
    ],
)
async def test_what_is_off_cannot_be_changed(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={"a": 1})
    assert response.status_code == 501
    assert response.json()["code"] == "not_served"


async def test_unregistering_what_is_not_there_succeeds(client: httpx.AsyncClient) -> None:
    for path in ("/v2/systemsharedmemory/unregister", "/v2/cudasharedmemory/region/r/unregister"):
        assert (await client.post(path)).status_code == 200


async def test_trace_settings_of_an_unknown_model_are_404(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/models/nope/trace/setting")).status_code == 404
