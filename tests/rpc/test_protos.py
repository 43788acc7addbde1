"""The generated code is of the .proto files beside it, and these keep the published numbers."""

import re
from pathlib import Path

import pytest

from serve_app.rpc import health_pb2, inference_pb2

FOLDER = Path(inference_pb2.__file__).parent
FIELD = re.compile(r"(?:repeated )?(?:map<\w+, \w+>|\w+) (\w+) = (\d+);")


@pytest.mark.parametrize("module", [inference_pb2, health_pb2], ids=lambda module: str(module.__name__))
def test_generated_code_has_every_field_of_its_proto(module: object) -> None:
    descriptor = module.DESCRIPTOR  # type: ignore[attr-defined]
    text = re.sub(r"//.*", "", (FOLDER / Path(descriptor.name).name).read_text())
    written = sorted((name, int(number)) for name, number in FIELD.findall(text))
    found = []
    queue = list(descriptor.message_types_by_name.values())
    while queue:
        message = queue.pop()
        if not message.GetOptions().map_entry:
            found += [(field.name, field.number) for field in message.fields]
        queue += message.nested_types
    values = [value for enum in descriptor.enum_types_by_name.values() for value in enum.values]
    values += [v for m in descriptor.message_types_by_name.values() for e in m.enum_types for v in e.values]
    numbers = {(value.name, value.number) for value in values}
    assert sorted(found) == [entry for entry in written if entry not in numbers]


# From the specifications: what clients generated elsewhere send and read.
PUBLISHED = {
    "ModelInferRequest": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    },
    "ModelInferResponse": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "outputs": 5,
        "raw_output_contents": 6,
    },
    "InferTensorContents": {
        "bool_contents": 1,
        "int_contents": 2,
        "int64_contents": 3,
        "uint_contents": 4,
        "uint64_contents": 5,
        "fp32_contents": 6,
        "fp64_contents": 7,
        "bytes_contents": 8,
    },
    "InferParameter": {"bool_param": 1, "int64_param": 2, "string_param": 3, "double_param": 4, "uint64_param": 5},
    "ModelStreamInferResponse": {"error_message": 1, "infer_response": 2},
    "RepositoryModelLoadRequest": {"repository_name": 1, "model_name": 2, "parameters": 3},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_published_ones(name: str) -> None:
    fields = inference_pb2.DESCRIPTOR.message_types_by_name[name].fields
    assert {field.name: field.number for field in fields} == PUBLISHED[name]
