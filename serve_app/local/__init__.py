"""One local Ray cluster, started, deployed to and stopped as a unit: `make up`, the live tests, the benchmarks.

`commands` is what people call; `node` and `dashboard` are what tests and benchmarks call. Imports no Ray: it controls
Ray's processes from outside and talks HTTP to its dashboard. Linux only.
"""

from serve_app.local.cluster import Cluster, Options
from serve_app.local.commands import deployed, down, environment, up
from serve_app.local.errors import LocalFailure

__all__ = ["Cluster", "LocalFailure", "Options", "deployed", "down", "environment", "up"]
