"""The smallest Serve application: says which process answered. Deployed by test_cluster.py as `echo_app:app`."""

import os
from typing import Any

from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, graceful_shutdown_timeout_s=1)
class Echo:
    async def __call__(self, request: Request) -> dict[str, Any]:
        return {"pid": os.getpid(), "path": request.url.path}


app = Echo.bind()


def broken(args: dict[str, str]) -> None:
    """Fail to build, as an application with a wrong argument does; the last line of a traceback says why."""
    del args
    raise ValueError("the budget of pool 'shared' is negative")
