"""Trace context: read from whoever sends it, carried to the batch, linked there."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from in_process import endpoint
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.tracing import batch_span, traceparent

TRACES = [f"00-{n:032x}-{n:016x}-01" for n in range(1, 9)]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


@pytest.mark.parametrize(
    ("received", "kept"),
    [
        (TRACES[0], True),
        ("cc-" + TRACES[0][3:] + "-what-comes", True),
        ("", False),
        ("nonsense", False),
        (TRACES[0].upper().replace("1", "A"), False),
        ("ff-" + TRACES[0][3:], False),
        ("00-" + "0" * 32 + "-" + "1" * 16 + "-01", False),
        ("00-" + "1" * 32 + "-" + "0" * 16 + "-01", False),
    ],
)
def test_only_what_the_standard_allows_is_carried_on(received: str, kept: bool) -> None:
    assert traceparent(received) == (received if kept else "")


def test_a_span_around_the_request_takes_the_place_of_the_header() -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("door") as door:
        context = door.get_span_context()
        assert traceparent(TRACES[0]) == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def test_a_batch_is_a_child_of_its_first_request_and_linked_to_all(spans: InMemorySpanExporter) -> None:
    with batch_span("m:1", 5, [TRACES[0], TRACES[1], TRACES[0], "broken", TRACES[2][:-2] + "00"]):
        pass
    [batch] = spans.get_finished_spans()
    assert links(batch) == [1, 2]
    assert batch.parent is not None
    assert batch.parent.span_id == 1
    assert dict(batch.attributes or {}) == {"model": "m:1", "batch.items": 5, "batch.requests": 2}


def test_without_a_sampled_request_there_is_no_span(spans: InMemorySpanExporter) -> None:
    with batch_span("m:1", 5, [TRACES[0][:-2] + "00"]), batch_span("m:1", 5, []):
        pass
    assert spans.get_finished_spans() == ()


def test_an_error_in_a_batch_is_the_spans(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="boom"), batch_span("m:1", 1, TRACES[:1]):
        raise ValueError("boom")
    assert not spans.get_finished_spans()[0].status.is_ok


async def test_from_the_header_through_the_hop_to_the_batch(spans: InMemorySpanExporter, tmp_path: Any) -> None:
    options = {"factory": "echo_engine:Echo", "kwargs": {"delay_s": 0.05}}
    entry = {"name": "echo", "task": "custom", "engine": "custom", "source": {"path": str(tmp_path)}, "pinned": True}
    async with endpoint(tmp_path, [entry | {"options": options}], {}, has_policies=False) as one:
        transport = httpx.ASGITransport(one.asgi())
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as http:
            asked = [
                http.post("/v2/models/echo/infer", json=body(i), headers={"traceparent": one_trace})
                for i, one_trace in enumerate(TRACES)
            ]
            answers = await asyncio.gather(*asked, http.post("/v2/models/echo/infer", json=body(9)))
    assert [answer.status_code for answer in answers] == [200] * 9
    found: list[int] = [link for span in spans.get_finished_spans() for link in links(span)]
    assert sorted(found) == list(range(1, 9))


def body(value: int) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}]}


def links(span: ReadableSpan) -> Sequence[int]:
    return [link.context.trace_id for link in span.links]
