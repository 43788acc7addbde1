"""Where our log lines go: into Serve's own log, with its format, files and request ids.

Serve configures the logger `ray.serve` in each replica and no other; called once by each deployment's constructor.
"""

import logging

_PACKAGES = ("serve_app", "deployments")


class _ToServe(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record to Serve's handlers, whatever they are at that moment."""
        logging.getLogger("ray.serve").handle(record)

    def flush(self) -> None:
        """Write what Serve holds back: with the throughput flag, up to 1,000 lines."""
        for handler in logging.getLogger("ray.serve").handlers:
            handler.flush()


def log_through_serve(level: int = logging.INFO) -> None:
    """Send what both packages log at `level` or above to Serve's log. Idempotent."""
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        if not any(isinstance(handler, _ToServe) for handler in logger.handlers):
            logger.addHandler(_ToServe())
