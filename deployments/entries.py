"""Which entries of a pool's configuration can serve. Used by `deployments.models`."""

from collections.abc import Iterable

from deployments.discovery import discovered
from deployments.engines import check_options, missing_bases
from deployments.spec import ModelSpec


def usable(models: Iterable[ModelSpec], refused: dict[str, str]) -> dict[str, ModelSpec]:
    """Return the entries that can serve, a version each; adds to `refused` why others cannot."""
    found, unknown = discovered(models)
    refused |= unknown
    specs: dict[str, ModelSpec] = {}
    for spec in found:
        try:
            check_options(spec)
            specs[spec.key] = spec
        except ValueError as exc:
            refused[spec.key] = str(exc)
    for key, reason in missing_bases(specs.values()).items():
        refused[key] = reason
        del specs[key]
    return specs
