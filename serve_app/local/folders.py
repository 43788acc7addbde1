"""Where a local cluster keeps its files.

The state folder (`.state/up`) holds the cluster's record, its token, Ray's start log. The run folder lies under /tmp,
because Unix socket paths may have 107 characters, and Ray and HAProxy append up to 85 to it.
Called by `cluster` and `ports`.
"""

import hashlib
import os
import stat
from pathlib import Path

from serve_app.local.errors import LocalFailure


def digest(state_dir: Path) -> str:
    """Return the ten characters that name this state folder's cluster on this machine."""
    return hashlib.sha256(str(state_dir).encode()).hexdigest()[:10]


def run_folder(state_dir: Path) -> Path:
    """Return the folder for sockets, sessions and logs of the cluster that `state_dir` describes."""
    return Path("/tmp") / f"mep-{digest(state_dir)}"  # noqa: S108  short on purpose; private_folder checks its owner


def private_folder(path: Path) -> Path:
    """Make `path` ours alone (0700). Raises LocalFailure if somebody else made it first."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise LocalFailure(f"{path} is not a folder of ours: remove it, or ask its owner to")
    path.chmod(0o700)
    return path
