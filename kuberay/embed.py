"""Writes `serve_config.yaml` into `rayservice.yaml`: run it after every edit of the former; a test compares the two.

The manifest's copy differs in two values: inside the cluster the endpoint listens on all addresses of its pod, since
Kubernetes' Service has to reach it, and therefore asks for API keys, from a Secret.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CONFIG = FOLDER.parent / "serve_config.yaml"
MANIFEST = FOLDER / "rayservice.yaml"
_BEGIN = "  serveConfigV2: |\n"
# What stands in the config, and what in the manifest instead.
_CHANGES = {
    "  host: 127.0.0.1 # this machine only; on any other address `auth` below is needed": (
        "  host: 0.0.0.0 # the pod's address, which the Service has to reach"
    ),
    "            # keys: file:/etc/model-endpoint/keys.json ": "            keys: file:/etc/model-endpoint/keys.json ",
}


def embedded(config: str, manifest: str) -> str:
    """Return the manifest with its serveConfigV2 made from the config."""
    for here, there in _CHANGES.items():
        if here not in config:
            raise SystemExit(f"{CONFIG.name} no longer holds the line {here!r}; mend {Path(__file__).name}")
        config = config.replace(here, there)
    head, _, rest = manifest.partition(_BEGIN)
    lines = rest.splitlines(keepends=True)
    n_old = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("    "))
    block = "".join(f"    {line}" if line.strip() else line for line in config.splitlines(keepends=True))
    return f"{head}{_BEGIN}{block}{''.join(lines[n_old:])}"


if __name__ == "__main__":
    MANIFEST.write_text(embedded(CONFIG.read_text(), MANIFEST.read_text()))
