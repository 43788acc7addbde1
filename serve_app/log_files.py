"""JSON lines into files of a folder or of any fsspec store, closed and replaced by size and age. Runs in one thread.

A file is named by host, process and the time it began; local ones can be read as they grow, remote ones once closed.
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import fsspec

from deployments.types import MONOTONIC, Clock
from serve_app.request_log_config import RequestLogConfig

logger = logging.getLogger(__name__)

RETRY_S = 5.0  # after a failure, before the store is tried again


class LogFiles:
    """Where the lines of one ingress replica go."""

    def __init__(
        self,
        config: RequestLogConfig,
        clock: Clock = MONOTONIC,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._clock = clock
        self._wall = wall
        self._writer = f"{socket.gethostname()}-{os.getpid()}"
        self._number = 0
        self._names: list[str] = []
        self._fs: Any = None
        self._file: Any = None
        self._n_bytes = 0
        self._opened_at = 0.0
        self._failed_at: float | None = None

    def write(self, lines: Sequence[bytes]) -> bool:
        """Write lines; False if they are lost."""
        if self._failed_at is not None and self._clock() - self._failed_at < RETRY_S:
            return False
        try:
            if self._file is None:
                self._open()
            block = b"".join(lines)
            self._file.write(block)
            self._file.flush()
            self._n_bytes += len(block)
            self._failed_at = None
            self._forget_oldest()
        except Exception as exc:  # stores raise what they like; none of it may end the thread
            logger.error("the request log cannot be written: %s", type(exc).__name__)
            self._failed_at = self._clock()
            self._abandon()
            return False
        return True

    def rotate_if_due(self) -> None:
        """Close a file that is large or old enough."""
        if self._file is None:
            return
        is_old = self._clock() - self._opened_at >= self._config.rotate_s
        if is_old or self._n_bytes >= self._config.rotate_bytes:
            self.close()

    def close(self) -> None:
        """Close the file at hand."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except Exception as exc:
            logger.error("a file of the request log could not be closed: %s", type(exc).__name__)

    def _abandon(self) -> None:
        """Leave a file that cannot be written: empty ones must not push full ones out of those that are kept."""
        is_empty = self._file is not None and not self._n_bytes
        self.close()
        if is_empty:
            with suppress(Exception):
                self._fs.rm_file(self._names.pop())

    def _open(self) -> None:
        fs, folder = fsspec.core.url_to_fs(self._config.url)
        fs.makedirs(folder, exist_ok=True)
        self._number += 1
        name = f"{folder.rstrip('/')}/requests-{self._wall():%Y%m%dT%H%M%S}-{self._writer}-{self._number}.jsonl"
        self._fs, self._file = fs, fs.open(name, "wb")
        self._n_bytes, self._opened_at = 0, self._clock()
        self._names.append(name)

    def _forget_oldest(self) -> None:
        while self._config.keep_files and len(self._names) > self._config.keep_files:
            self._fs.rm_file(self._names.pop(0))
