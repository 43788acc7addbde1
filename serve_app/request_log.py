"""The request log: one JSON line a request, whatever door it came through and however it ended; the gateway's `Log`.

    record() ──▶ bounded buffer ──▶ a thread: render, redact, write (log_payloads.py, log_files.py)
                    └▶ full: dropped and counted

The event loop only hands over references; everything that takes time happens in the thread.
"""

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import orjson

from deployments.types import MONOTONIC, Clock, InferRequest, InferResult, Usage
from serve_app.config import EndpointConfig
from serve_app.context import Context
from serve_app.log_files import LogFiles
from serve_app.log_payloads import Shown, size_of
from serve_app.protocols.types import Action
from serve_app.request_log_config import RequestLogConfig
from serve_app.telemetry import IngressMetrics

logger = logging.getLogger(__name__)

_PROBES = frozenset((Action.OPEN, Action.METRICS))
_MAX_LINES = 1000  # rendered at a time
_CLOSE_S = 2.0


@dataclass(slots=True)
class _Entry:
    """What is kept of a finished request until its line is written."""

    ended: float  # seconds since 1970
    total_s: float
    facts: Mapping[str, Any]
    phases: Mapping[str, float]
    usage: Usage
    request: InferRequest | None
    result: InferResult | None
    n_bytes: int


class RequestLog:
    """Writes the log of one ingress replica; off until it is configured."""

    def __init__(
        self,
        metrics: IngressMetrics,
        wall: Callable[[], float] = lambda: datetime.now(UTC).timestamp(),
        clock: Clock = MONOTONIC,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._metrics = metrics
        self._wall = wall
        self._clock = clock
        self._chance = chance
        self._config: RequestLogConfig | None = None
        self._writer: _Writer | None = None

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config; what waits under the old one is still written by it."""
        if config.request_log == self._config:
            return
        self._config = config.request_log
        if self._writer is not None:
            self._writer.stop()
        self._writer = _Writer(config.request_log, self._metrics) if config.request_log else None

    def record(self, context: Context) -> None:
        """Take one finished request."""
        config, writer = self._config, self._writer
        if config is None or writer is None:
            return
        is_good = context.status < 400
        if is_good and (context.action in _PROBES or (config.sample < 1 and self._chance() >= config.sample)):
            return
        payloads = config.payloads
        is_shown = payloads is not None and (payloads.sample >= 1 or self._chance() < payloads.sample)
        if is_shown and payloads is not None and payloads.models != ("*",):
            names = (context.model, f"{context.model}:{context.version}")
            is_shown = any(fnmatchcase(name, glob) for glob in payloads.models for name in names)
        request, result = (context.request, context.result) if is_shown else (None, None)
        tensors = [each for each in (request and request.inputs, result and result.outputs) if each]
        writer.put(
            _Entry(
                self._wall(),
                self._clock() - context.started,
                _facts(context),
                dict(context.phases),
                context.usage,
                request,
                result,
                size_of(tensors) if tensors else 0,
            )
        )

    def close(self) -> None:
        """Write what waits, for a moment at most."""
        if self._writer is not None:
            self._writer.stop()
            self._writer.join()


class _Writer:
    """The buffer and the thread that empties it."""

    def __init__(self, config: RequestLogConfig, metrics: IngressMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self._files = LogFiles(config)
        self._shown = Shown(config.payloads) if config.payloads else None
        self._waiting: deque[_Entry] = deque()
        self._n_bytes = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def put(self, entry: _Entry) -> None:
        """Add an entry; drop it if the buffer is full, its payload if only that does not fit."""
        with self._lock:
            if len(self._waiting) >= self._config.max_waiting:
                self._metrics.request_log_dropped("line", 1)
                return
            if self._n_bytes + entry.n_bytes > self._config.max_waiting_bytes:
                self._metrics.request_log_dropped("payload", 1)
                entry = _Entry(entry.ended, entry.total_s, entry.facts, entry.phases, entry.usage, None, None, 0)
            self._waiting.append(entry)
            self._n_bytes += entry.n_bytes

    def stop(self) -> None:
        """Let the thread end once everything is written."""
        self._stopping.set()

    def join(self) -> None:
        """Wait for that, for a moment at most."""
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while not self._stopping.wait(self._config.flush_s):
            self._write()
        self._write()
        self._files.close()

    def _write(self) -> None:
        while entries := self._take():
            lines = [line for entry in entries if (line := self._rendered(entry))]
            n_written = len(lines) if self._files.write(lines) else 0
            self._metrics.request_log_written(n_written)
            if n_written < len(entries):
                self._metrics.request_log_dropped("line", len(entries) - n_written)
            self._files.rotate_if_due()
        self._files.rotate_if_due()

    def _take(self) -> list[_Entry]:
        with self._lock:
            entries = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_LINES))]
            self._n_bytes -= sum(entry.n_bytes for entry in entries)
            return entries

    def _rendered(self, entry: _Entry) -> bytes:
        try:
            return self._line(entry)
        except Exception as exc:  # code in the cluster may send what no JSON holds: one line, not the thread
            logger.error("a line of the request log cannot be written: %s", type(exc).__name__)
            return b""

    def _line(self, entry: _Entry) -> bytes:
        phases = {f"{name}_ms": round(seconds * 1e3, 3) for name, seconds in entry.phases.items()}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(entry.ended - entry.total_s, UTC),
            **entry.facts,
            "phases": {**phases, "total_ms": round(entry.total_s * 1e3, 3)},
            "n_items": entry.usage.n_items,
            "n_tokens": entry.usage.n_tokens,
        }
        shown, config = self._shown, self._config.payloads
        if shown is not None and config is not None:
            if entry.request is not None and config.inputs:
                line["inputs"] = shown.tensors(entry.request.inputs)
                if entry.request.params:
                    line["parameters"] = shown.parameters(entry.request.params)
            if entry.result is not None and config.outputs:
                line["outputs"] = shown.tensors(entry.result.outputs)
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z, default=str)


def _facts(context: Context) -> dict[str, Any]:
    return {
        "request_id": context.request_id,
        "door": context.door,
        "method": context.method,
        "route": context.route,
        "action": context.action,
        "principal": context.principal.name,
        "credential": context.principal.credential,
        "model": context.model,
        "version": context.version,
        "arm": context.arm,
        "fallback": context.fallback,
        "status": context.status,
        "code": context.code,
    }
