"""Where our log lines go: into Serve's own log, with its format, files and request ids.

Serve configures the logger `ray.serve` in each replica and no other; `log_through_serve` is called once by each
deployment's constructor. What many short lines have in common (time, replica, level) is worked out once for all of a
`Lines`; each still is a line of its own in the file, a JSON object of its own where Serve logs JSON.
"""

import contextvars
import json
import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

_PACKAGES = ("serve_app", "deployments")
_MESSAGE, _ID = "@the-line@", "@the-request@"  # where they stand in a formatted record
_SLOTS = re.compile(f"({_MESSAGE}|{_ID})")


class Line(NamedTuple):
    """One line, and the request it is about."""

    text: str
    request_id: str


class Lines(tuple[Line, ...]):
    """Lines that go into the log together; as a text, one below the other."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(line.text for line in self)


def write_lines(logger: logging.Logger, lines: Sequence[Line]) -> None:
    """Log lines at INFO, each with its own request id, and write them to the file now."""
    # NOTE: an empty context, or Serve would put one request's id on the lines of all.
    contextvars.Context().run(logger.info, Lines(lines), extra={"request_id": _ID})
    for name in _PACKAGES:
        for handler in logging.getLogger(name).handlers:
            handler.flush()


class _ToServe(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record to Serve's handlers, whatever they are at that moment."""
        serve = logging.getLogger("ray.serve")
        if isinstance(record.msg, Lines):
            for handler in serve.handlers:
                _one_a_line(getattr(handler, "target", None) or handler)
        serve.handle(record)
        if record.levelno >= logging.WARNING:
            self.flush()

    def flush(self) -> None:
        """Write what Serve holds back: with the throughput flag, up to 1,000 records."""
        for handler in logging.getLogger("ray.serve").handlers:
            handler.flush()


class _OneALine(logging.Formatter):
    """Formats as `inner` does, and each of a `Lines` as if it had come alone."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner
        self._done: tuple[Lines, str] | None = None  # a file that rotates asks twice

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        lines = record.msg
        if not isinstance(lines, Lines):
            return self._inner.format(record)
        if self._done is None or self._done[0] is not lines:
            record.msg = _MESSAGE
            try:
                frame = _SLOTS.split(self._inner.format(record))
            finally:
                record.msg = lines
            self._done = lines, "\n".join(_filled(frame, line) for line in lines)
        return self._done[1]


def _filled(frame: Sequence[str], line: Line) -> str:
    is_json = frame[0].startswith("{")
    text, request_id = (json.dumps(part)[1:-1] for part in line) if is_json else line
    slots = {_MESSAGE: text, _ID: request_id}
    return "".join([slots.get(part, part) for part in frame])


def _one_a_line(handler: logging.Handler) -> None:
    if handler.formatter is not None and not isinstance(handler.formatter, _OneALine):
        handler.setFormatter(_OneALine(handler.formatter))


def log_through_serve(level: int = logging.INFO) -> None:
    """Send what both packages log at `level` or above to Serve's log. Idempotent."""
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        if not any(isinstance(handler, _ToServe) for handler in logger.handlers):
            logger.addHandler(_ToServe())
