"""An event loop whose clock jumps to the next timer when there is nothing to do: hours pass in milliseconds."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """`loop.time()` is virtual. Threads must not be used: nothing waits for them."""

    def __init__(self) -> None:
        super().__init__(_Jumping(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("deadlock: nothing is scheduled, and everybody waits")
        self._loop.now += timeout
        return super().select(0)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine under virtual time; `asyncio.get_running_loop().time` is the clock to pass on."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
