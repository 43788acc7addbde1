"""Writes `serve_config.yaml` into `rayservice.yaml`: run it after every edit of the former; a test compares the two.

The manifest's copy differs in one value: inside the cluster the endpoint listens on all addresses of its pod, since
Kubernetes' Service has to reach it.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CONFIG = FOLDER.parent / "serve_config.yaml"
MANIFEST = FOLDER / "rayservice.yaml"
_BEGIN = "  serveConfigV2: |\n"
_HOST, _HOST_HERE = "  host: 127.0.0.1 ", "  host: 0.0.0.0 "
_WHO = "# this machine only. There is no authentication yet: open it to people you trust with every model"
_WHO_HERE = "# the pod's address. There is no authentication yet: keep the Service behind a NetworkPolicy or gateway"


def embedded(config: str, manifest: str) -> str:
    """Return the manifest with its serveConfigV2 made from the config."""
    if _HOST + _WHO not in config:
        raise SystemExit(f"{CONFIG.name} no longer holds the line {_HOST + _WHO!r}; mend {Path(__file__).name}")
    config = config.replace(_HOST + _WHO, _HOST_HERE + _WHO_HERE)
    head, _, rest = manifest.partition(_BEGIN)
    lines = rest.splitlines(keepends=True)
    n_old = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("    "))
    block = "".join(f"    {line}" if line.strip() else line for line in config.splitlines(keepends=True))
    return f"{head}{_BEGIN}{block}{''.join(lines[n_old:])}"


if __name__ == "__main__":
    MANIFEST.write_text(embedded(CONFIG.read_text(), MANIFEST.read_text()))
