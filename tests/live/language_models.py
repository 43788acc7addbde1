"""A pool of tiny language models for live tests: a base, two LoRA adapters of it, and what its metrics say."""

from pathlib import Path
from typing import Any

import httpx
from echo_pool import config
from live_cluster import Live
from tiny_models import adapter_folder, build

ADAPTERS = ("polite", "curt")
LIMIT = 4096  # tokens a sequence may have: some seconds at full speed


def folders(root: Path) -> dict[str, Path]:
    """Save the models, by name."""
    adapters = {name: adapter_folder(root / name, seed) for seed, name in enumerate(ADAPTERS)}
    return {"tiny": build("llama-long", root / "tiny"), **adapters}


def language_models(saved: dict[str, Path], **options: Any) -> Any:
    """Return a Serve config of the models in these folders; `options` of the base."""
    entries = [
        {
            "name": name,
            "task": "text-generation",
            "source": {"path": str(folder)},
            "timeout_s": 60,
            **({"base": "tiny:1"} if name in ADAPTERS else {"pinned": True}),
        }
        for name, folder in saved.items()
    ]
    entries[0]["options"] = {"cache_bytes": "8MiB", **options}  # 32,768 tokens
    entries[0]["batch"] = {"max_items": 64, "max_queue_items": 256}
    return config(*entries, pool={"max_ongoing_requests": 512})


def metric(endpoint: Live, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels."""
    page = httpx.get(f"{endpoint.http_url}/metrics", timeout=30, trust_env=False).text
    lines = [line for line in page.splitlines() if line.startswith(f"{name}{{")]
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(one in line for one in wanted))
