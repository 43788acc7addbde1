"""Triton's repository extension: what the index says, and what load and unload order."""

import json
from dataclasses import replace

import httpx
import pytest
from edge_fakes import TEXT, FakeGateway, FakeModels

from deployments.errors import ModelUnavailable
from deployments.orders import LOAD, UNLOAD, Order, Verb
from deployments.types import Signature


async def test_the_index_lists_every_version_with_its_state(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    lines = (await client.post("/v2/repository/index")).json()
    assert {(line["name"], line["version"]) for line in lines} == {(m.name, m.version) for m in gateway.models.all()}
    assert {"READY", "LOADING", "UNLOADING", "UNAVAILABLE", "UNKNOWN"} >= {line["state"] for line in lines}
    assert all(line["reason"] for line in lines if line["state"] == "UNAVAILABLE")


async def test_the_index_of_ready_models_holds_no_other(client: httpx.AsyncClient) -> None:
    lines = (await client.post("/v2/repository/index", json={"ready": True})).json()
    assert lines
    assert {line["state"] for line in lines} == {"READY"}


async def test_a_ready_that_is_no_boolean_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v2/repository/index", json={"ready": "yes"})
    assert response.status_code == 400
    assert "ready" in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "versions"), [("mood", ["1", "2"]), ("mood:2", ["2"])], ids=["all versions", "one version"]
)
@pytest.mark.parametrize("order", [LOAD, UNLOAD], ids=str)
async def test_an_order_is_for_every_version_or_the_one_that_is_named(
    client: httpx.AsyncClient, gateway: FakeGateway, path: str, versions: list[str], order: Order
) -> None:
    response = await client.post(f"/v2/repository/models/{path}/{order}")
    state = "READY" if order is LOAD else "UNAVAILABLE"
    assert (response.status_code, response.json()) == (200, {"name": path, str(order): True, "state": state})
    [command] = gateway.commands
    assert command.order == order
    assert [model.version for model in command.models] == versions


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("nope/load", None, 404, "unknown model"),
        ("mood:9/unload", None, 404, "unknown model"),
        (
            "mood/load",
            {"parameters": {"file:1/model.pt": "aGk="}},
            400,
            "failed to load 'mood': parameters.file:1/model.pt",
        ),
        ("mood/load", {"parameters": {"config": {}}}, 400, "failed to load 'mood': parameters.config: must be a JSON"),
        ("mood/load", {"parameters": {"config": '"max_batch_size": {{}}'}}, 400, "must be a JSON object"),
        ("mood/load", {"parameters": {"config": "[1]"}}, 400, "must be a JSON object"),
        ("adder/load", {"parameters": {"config": '{"max_batch_size": "x"}'}}, 400, "whole number from 1 to 65536"),
        ("adder/load", {"parameters": {"config": '{"max_batch_size": -1}'}}, 400, "whole number from 1 to 65536"),
        ("adder/load", {"parameters": {"config": '{"max_batch_size": 65537}'}}, 400, "whole number from 1 to 65536"),
        ("adder/load", {"parameters": {"config": '{"max_batch_size": [4]}'}}, 400, "whole number from 1 to 65536"),
        ("mood/load", {"parameters": {"config": '{"backend": "onnxruntime"}'}}, 400, "backend cannot be changed"),
        ("mood/load", {"parameters": {"config": '{"instance_group": [{}]}'}}, 400, "instance_group cannot be changed"),
        ("mood/load", {"parameters": {"config": '{"input": []}'}}, 400, "input cannot be changed"),
        ("mood/unload", {"parameters": {"config": "{}"}}, 400, "parameters.config"),
        ("mood/load", {"paramters": {}}, 400, "did you mean 'parameters'"),
    ],
)
async def test_what_cannot_be_ordered_is_said(
    client: httpx.AsyncClient, gateway: FakeGateway, path: str, body: object, status: int, word: str
) -> None:
    response = await client.post(f"/v2/repository/models/{path}", json=body)
    assert response.status_code == status
    assert word in response.json()["error"]
    assert gateway.commands == []


async def test_tritons_own_parameter_is_accepted(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    body = {"parameters": {"unload_dependents": False}}
    assert (await client.post("/v2/repository/models/mood/unload", json=body)).status_code == 200
    assert len(gateway.commands) == 1


SIZES = [(16, 16), ("16", 16), (7, None)]  # 7 is what the model has


@pytest.mark.parametrize(("size", "wanted"), SIZES)
async def test_a_load_may_say_how_large_batches_are(
    client: httpx.AsyncClient, gateway: FakeGateway, size: object, wanted: int | None
) -> None:
    adder = gateway.models.resolve("adder")
    gateway.models = FakeModels((replace(adder, max_items=7),))
    path = "/v2/repository/models/adder/load"
    as_told = (await client.get("/v2/models/adder/config")).json()
    for config in ({"max_batch_size": size}, {**as_told, "max_batch_size": size}):
        response = await client.post(path, json={"parameters": {"config": json.dumps(config)}})
        assert response.status_code == 200, response.text
        assert gateway.commands[-1].order == Order(Verb.LOAD, wanted)


async def test_a_model_without_rows_has_no_size_of_batches_to_change(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    gateway.models = FakeModels((replace(gateway.models.resolve("minilm"), signature=Signature((TEXT,), (TEXT,))),))
    body = {"parameters": {"config": '{"max_batch_size": 4}'}}
    response = await client.post("/v2/repository/models/minilm/load", json=body)
    assert (response.status_code, "no dimension for a batch" in response.json()["error"]) == (400, True)
    body = {"parameters": {"config": '{"max_batch_size": 0}'}}
    assert (await client.post("/v2/repository/models/minilm/load", json=body)).status_code == 200


async def test_a_load_that_fails_says_why(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.error = ModelUnavailable("model 'mood:1' cannot be loaded: disk on fire", reason="disk on fire")
    response = await client.post("/v2/repository/models/mood/load")
    assert response.status_code == 503
    assert "disk on fire" in response.json()["error"]
