"""A model's own OpenAPI document: valid, of its tensors, with an example that runs."""

from typing import Any

import httpx
import pytest
from edge_fakes import MODELS, FakeGateway, status
from openapi_spec_validator import validate

from deployments.types import Datatype, Signature, Task, TensorSpec

KNOWN = [model for model in MODELS if model.signature.inputs and model.task is not Task.FILL_MASK]


async def document_of(client: httpx.AsyncClient, path: str) -> Any:
    response = await client.get(f"/v2/models/{path}/openapi.json")
    assert response.status_code == 200
    return response.json()


@pytest.mark.parametrize("model", KNOWN, ids=lambda model: str(model.key))
async def test_it_is_valid_and_its_example_runs(client: httpx.AsyncClient, model: Any) -> None:
    document = await document_of(client, f"{model.name}/versions/{model.version}")
    validate(document)
    assert document["info"]["title"] == model.key
    assert not any("{" in path for path in document["paths"])
    path = f"/v2/models/{model.key}/infer"
    operation = document["paths"][path]["post"]
    assert {"400", "404", "429", "503", "504"} < set(operation["responses"])
    response = await client.post(path, json=operation["requestBody"]["content"]["application/json"]["example"])
    assert response.status_code == 200, response.text


async def test_it_says_names_datatypes_and_shapes(client: httpx.AsyncClient) -> None:
    document = await document_of(client, "adder")
    content = document["paths"]["/v2/models/adder:1/infer"]["post"]["requestBody"]["content"]["application/json"]
    [tensor] = content["schema"]["properties"]["inputs"]["items"]["oneOf"]
    assert tensor["properties"]["name"] == {"const": "x"}
    assert tensor["properties"]["datatype"] == {"const": "FP32"}
    assert tensor["properties"]["shape"]["prefixItems"] == [{"type": "integer", "minimum": 0}, {"const": 2}]
    assert content["example"] == {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5]}]}


async def test_a_model_that_has_not_said_its_tensors_gets_the_general_body(client: httpx.AsyncClient) -> None:
    document = await document_of(client, "echo")
    validate(document)
    content = document["paths"]["/v2/models/echo:1/infer"]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"]["$ref"].endswith("/InferBody")


async def test_what_json_cannot_carry_has_no_example(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    half = Signature((TensorSpec("h", Datatype.FP16, (-1, 2)),), ())
    gateway.models._models += (status("half", Task.CUSTOM, half),)
    document = await document_of(client, "half")
    validate(document)
    content = document["paths"]["/v2/models/half:1/infer"]["post"]["requestBody"]["content"]["application/json"]
    assert "example" not in content


async def test_an_example_of_the_tensor_itself_is_the_documents(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    rate = TensorSpec("rate", Datatype.INT64, (1,), example=(16000,))
    rows = TensorSpec("rows", Datatype.BYTES, (-1, 2), example=(["1", "2"], ["3", "4"]))
    gateway.models._models += (status("odd", Task.CUSTOM, Signature((rate, rows), ())),)
    content = (await document_of(client, "odd"))["paths"]["/v2/models/odd:1/infer"]["post"]["requestBody"]["content"]
    assert content["application/json"]["example"]["inputs"] == [
        {"name": "rate", "shape": [1], "datatype": "INT64", "data": [16000]},
        {"name": "rows", "shape": [2, 2], "datatype": "BYTES", "data": [["1", "2"], ["3", "4"]]},
    ]


async def test_only_models_that_generate_are_asked_to(client: httpx.AsyncClient) -> None:
    async def ways(model: str) -> set[str]:
        return {path.rpartition("/")[2] for path in (await document_of(client, model))["paths"]}

    assert {"generate", "generate_stream"} < await ways("smollm2")
    assert not {"generate", "generate_stream"} & await ways("minilm")


async def test_a_model_whose_mask_is_not_known_yet_has_no_example(client: httpx.AsyncClient) -> None:
    content = (await document_of(client, "mask"))["paths"]["/v2/models/mask:1/infer"]["post"]["requestBody"]["content"]
    assert "example" not in content["application/json"]


async def test_an_unknown_model_has_none(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/models/nope/openapi.json")).status_code == 404
