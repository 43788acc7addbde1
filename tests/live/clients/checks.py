"""Runs the checks of a client script: every function whose name begins with `check_`, in order; prints one line each.

A script is run by `test_clients.py` with the clients' own Python: `python triton_http.py <address>...`.
"""

import asyncio
import inspect
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def run(checks: dict[str, Any]) -> None:
    """Run every check with the command line's addresses; exit 1 if one failed."""
    addresses = sys.argv[1:]
    failed = 0
    for name, check in checks.items():
        if not name.startswith("check_"):
            continue
        try:
            done = check(*addresses)
            if inspect.isawaitable(done):
                asyncio.run(done)  # type: ignore[arg-type]
        except Exception:
            failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"ok {name}", flush=True)
    sys.exit(1 if failed else 0)


def comes_true(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Return whether a condition holds soon: an endpoint hears of its models once a second."""
    deadline = time.monotonic() + timeout_s
    while not (is_so := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return is_so


@contextmanager
def raises(kind: type[BaseException], *words: str, where: Callable[[Any], str] = str) -> Iterator[None]:
    """Check that the block raises this, with these words in its message."""
    try:
        yield
    except kind as exc:
        missing = [word for word in words if word not in where(exc)]
        assert not missing, f"{missing} not in {where(exc)!r}"
    else:
        raise AssertionError(f"{kind.__name__} was not raised")
