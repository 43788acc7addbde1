"""Schemathesis on our own OpenAPI document, over HTTP, against real tiny models: nothing undocumented, no 500.

Half of the requests are right by the document and half are wrong, and most name a model that exists: what the
document cannot say (a tensor's values, which parameters a model knows) has to be refused by the model's own checks.
Half of all are the document's examples but for one field, so that models get something to do.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from in_process import served
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks
from tiny_models import build

from serve_app.protocols import ENDPOINTS
from serve_app.protocols.types import RawRequest

MODELS = ("embed", "mood", "rank", "mask", "speak", "title", "echo", "echo:2", "ab")
OURS = {"minilm": "embed", "smollm2": "speak"}  # the examples' models, and those here that do the same
CHECKS = (
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
)
POLICIES: dict[str, Any] = {
    "max_timeout_s": 20,
    "aliases": {"ab": {"targets": {"echo:1": 1, "echo:2": 1}, "shadows": [{"model": "echo:2"}]}},
    "fallbacks": {"echo:2": {"answer": {"y": 0.0}}},
    "breaker": {},
    "bulkhead": {"max_requests": 100},
    "retries": {},
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("fuzz")
    echo = {"task": "custom", "engine": "custom", "source": {"path": str(folder)}}
    echo["options"] = {"factory": "echo_engine:Echo"}
    models = [
        tiny("embed", "feature-extraction", "sentence-bert", folder),
        tiny("mood", "text-classification", "bert-classifier", folder),
        tiny("rank", "text-ranking", "bert-ranker", folder),
        tiny("mask", "fill-mask", "bert-masked", folder),
        generating("speak", "text-generation", "llama", folder),
        generating("title", "text2text-generation", "t5", folder),
        {"name": "echo", **echo, "cache": {"rows": ["x"]}},
        {"name": "echo", "version": "2", **echo},
    ]
    with served(folder / "cache", models, POLICIES) as found:
        yield found


def tiny(name: str, task: str, kind: str, folder: Path) -> dict[str, Any]:
    path = build(kind, folder / name)
    return {"name": name, "task": task, "source": {"path": str(path)}, "pinned": True, "cache": {}}


def generating(name: str, task: str, kind: str, folder: Path) -> dict[str, Any]:
    entry = {key: value for key, value in tiny(name, task, kind, folder).items() if key != "cache"}
    return {**entry, "options": {"cache_bytes": "1MiB", "max_new_tokens": 4}, "batch": {"max_items": 4}}


def document() -> dict[str, Any]:
    (row,) = [row for row in ENDPOINTS if row.path == "/openapi.json"]
    assert row.answer is not None
    found: dict[str, Any] = json.loads(row.answer(RawRequest(), None).body)  # type: ignore[arg-type]
    return found


SCHEMA = schemathesis.openapi.from_dict(document())
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_answer_is_undocumented_and_none_is_a_500(operation: Any, url: str) -> None:
    strategies = [operation.as_strategy(mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(strategies), name=st.sampled_from((*MODELS, None)), kept=st.integers(-20, 20))
    def check(case: Any, name: str | None, kept: int) -> None:
        if kept >= 0:
            come_near(case, kept)
        elif name is not None:
            aim(case, name)
        response = case.call(base_url=url)
        assert response.status_code != 500, (response.text, case.as_curl_command())
        case.validate_response(response, checks=CHECKS)

    check()


def aim(case: Any, name: str) -> None:
    """Point a generated request at a model that exists."""
    if "model" in case.path_parameters:
        case.path_parameters["model"] = name
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = name


def come_near(case: Any, kept: int) -> None:
    """Make a request out of the document's example, but for one field: most are answered, or refused by the model."""
    example = case.operation.definition.raw.get("requestBody", {}).get("content", {}).get("application/json", {})
    body = example.get("example")
    if body is None or not isinstance(case.body, dict):
        return
    fields = sorted(case.body)
    kept_field = {fields[kept % len(fields)]: case.body[fields[kept % len(fields)]]} if fields else {}
    case.body = {**body, **kept_field}
    if isinstance(name := body.get("model"), str) and "model" not in kept_field:
        case.body["model"] = OURS.get(name, name)
    if "model" in case.path_parameters:
        case.body.pop("model", None)
        for parameter in case.operation.definition.raw.get("parameters", []):
            example_name = parameter.get("example")
            if parameter["name"] == "model" and example_name is not None:
                case.path_parameters["model"] = OURS.get(example_name, example_name)
