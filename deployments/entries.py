"""Which entries of a pool's configuration can serve, and what code they take. Used by `deployments.models`, `pool`."""

import importlib
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from deployments.discovery import discovered
from deployments.engines import ENGINES, check_options, engine_name, missing_bases
from deployments.spec import ModelSpec, parse_models

logger = logging.getLogger(__name__)


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


def import_code(user_config: Any) -> None:
    """Import what loading the models of a Pool's user_config takes: seconds that no request should wait for.

    Blocks. Nothing may be loading meanwhile: transformers' lazy modules are not made for two threads.
    """
    settings, _ = parse_models(user_config)
    modules: set[str] = set()
    for spec in settings.models:
        with suppress(ValueError):  # an entry that is refused, with its reason, when it is applied
            modules.add(ENGINES[engine_name(spec)].factory.partition(":")[0])
    for module in sorted(modules):
        try:
            importlib.import_module(module)
        except Exception as exc:  # told by the load that needs it
            logger.warning("%s cannot be imported: %s", module, exc)
