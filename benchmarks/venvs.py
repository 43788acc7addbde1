"""The peers' environments: one each under `.state/bench/venvs`, pinned, borrowing torch and transformers from ours.

A `.pth` file appends our site-packages to the peer's path, so that torch is neither downloaded nor stored again, and
every side computes with the same build. What a peer needs in another version is installed in front of it.
`python -m benchmarks venvs` makes what is missing; a peer that does not install is reported and left out.
"""

import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Callable, Mapping, Sequence

from benchmarks.side import STATE

# NOTE: no CUDA build may slip in with a dependency: pip sees our torch as installed, and this holds it there.
_CONSTRAINTS = ("torch==2.13.0",)
PINS: Mapping[str, Sequence[str]] = {
    "litserve": ("litserve==0.2.19",),
    "bentoml": ("bentoml==1.4.40",),
    # Its parallel workers want an event loop that newer versions of uvloop do not make for them.
    "mlserver": ("mlserver==1.7.1", "uvloop==0.21.0"),
    # The newest transformers that infinity's own code imports with.
    "infinity": ("infinity-emb[server,torch]==0.0.78", "transformers==4.57.6"),
    "kserve": ("kserve==0.21.0",),
    "onnxruntime": ("onnxruntime==1.32.0", "onnx==1.23.2"),
    "triton": ("nvidia-pytriton==0.7.0",),
}


def make(names: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Make the environments that are missing or have other pins; return the names of those that failed."""
    failed = []
    for name in names:
        folder = STATE / "venvs" / name
        stamp, wanted = folder / "installed", " ".join(PINS[name])
        if stamp.exists() and stamp.read_text() == wanted:
            continue
        say(f"{name}: installing {wanted}")
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        lib = sysconfig.get_path("purelib", vars={"base": str(folder)})
        with open(f"{lib}/zz_ours.pth", "w") as link:
            link.write(f"{sysconfig.get_path('purelib')}\n")
        if reason := _install(folder / "bin" / "python", PINS[name]):
            failed.append(name)
            say(f"{name}: does not install: {reason}")
            continue
        stamp.write_text(wanted)
    return failed


def _install(python: object, pins: Sequence[str]) -> str:
    """Return why it failed, or nothing."""
    limits = STATE / "constraints.txt"
    limits.write_text("\n".join(_CONSTRAINTS))
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-conflicts"]
    done = subprocess.run([*command, "--constraint", str(limits), *pins], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:300]
