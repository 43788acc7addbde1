"""W3C trace context and the span of a batch: each request brings a `traceparent`, a batch links all of its own.

Spans go to whatever tracer provider the process has: Serve sets one up where `tracing_config` (or
RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH) names an exporter. Without one, and for requests without a sampled trace,
nothing is made. Called by `serve_app.gateway` and `deployments.loader`.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# Versions to come may add fields behind; ff, and ids of zeros, are not allowed.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_W3C = TraceContextTextMapPropagator()


def traceparent(received: str) -> str:
    """Return what a request's work belongs to: this process's span around it, else what its client sent, else ""."""
    if trace.get_current_span().get_span_context().is_valid:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent", "")
    return received if received and _TRACEPARENT.fullmatch(received) else ""


@contextmanager
def batch_span(model: str, n_items: int, traces: Collection[str]) -> Iterator[None]:
    """Record the run of a batch: a child of the first sampled request, linked to all of them."""
    sampled = [context for one in dict.fromkeys(traces) if (context := _context(one)) and context.trace_flags.sampled]
    if not sampled:
        yield
        return
    with trace.get_tracer(__name__).start_as_current_span(
        "batch",
        context=trace.set_span_in_context(NonRecordingSpan(sampled[0])),
        kind=SpanKind.INTERNAL,
        links=[Link(context) for context in sampled],
        attributes={"model": model, "batch.items": n_items, "batch.requests": len(sampled)},
    ):
        yield


def _context(traceparent: str) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
