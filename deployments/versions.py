"""Which of a model's versions are offered, and which of two is the newer. Pure; for `models` and the ingress."""

import re
from collections.abc import Iterable, Mapping

from deployments.spec import Latest, ModelSpec, VersionPolicy


def natural(version: str) -> list[tuple[int, int, str]]:
    """Return a sort key under which 2 comes before 10, and v1.9 before v1.10."""
    parts: Iterable[str] = re.findall(r"\d+|\D+", version)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def offered(specs: Mapping[str, ModelSpec], policies: Mapping[str, VersionPolicy]) -> dict[str, ModelSpec]:
    """Return the entries that their models' policies let through, and bases of adapters among them, in order."""
    versions: dict[str, list[str]] = {}
    for spec in specs.values():
        versions.setdefault(spec.name, []).append(spec.version)
    chosen = {name: _chosen(found, policies.get(name, "all")) for name, found in versions.items()}
    through = {key: spec for key, spec in specs.items() if spec.version in chosen[spec.name]}
    bases = {spec.base for spec in through.values()}
    return {key: spec for key, spec in specs.items() if key in through or key in bases}


def _chosen(versions: list[str], policy: VersionPolicy) -> frozenset[str]:
    if isinstance(policy, Latest):
        return frozenset(sorted(versions, key=natural)[-policy.latest :])
    return frozenset(versions if policy == "all" else policy)
