"""What a config is going to do, before it is deployed: `model-endpoint plan FILE`. Pure; called by the CLI.

`memory` says what fits where and what has to take turns; `changes` what deploying it does to what runs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.plan.changes import changes
from serve_app.plan.memory import memory

__all__ = ["plan"]


def plan(new: Mapping[str, Any], old: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the plan of a valid config, a line a fact; `old` is what runs now, None if nothing does."""
    yield from memory(new)
    yield ""
    if old is None:
        yield "nothing runs that this would change"
    else:
        yield from changes(old, new)
