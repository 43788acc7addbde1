"""Triton's repository extension: what the index says, and what load and unload order."""

import httpx
import pytest
from edge_fakes import FakeGateway

from deployments.errors import ModelUnavailable
from deployments.orders import Order


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
@pytest.mark.parametrize("order", list(Order))
async def test_an_order_is_for_every_version_or_the_one_that_is_named(
    client: httpx.AsyncClient, gateway: FakeGateway, path: str, versions: list[str], order: Order
) -> None:
    response = await client.post(f"/v2/repository/models/{path}/{order}")
    assert (response.status_code, response.content) == (200, b"")
    [command] = gateway.commands
    assert command.order is order
    assert [model.version for model in command.models] == versions


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("nope/load", None, 404, "unknown model"),
        ("mood:9/unload", None, 404, "unknown model"),
        ("mood/load", {"parameters": {"config": "{}"}}, 400, "parameters.config"),
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


async def test_a_load_that_fails_says_why(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.error = ModelUnavailable("model 'mood:1' cannot be loaded: disk on fire", reason="disk on fire")
    response = await client.post("/v2/repository/models/mood/load")
    assert response.status_code == 503
    assert "disk on fire" in response.json()["error"]
