"""Any Python class that keeps the `Engine` contract, by import path. Called by `load_engine`.

The class is the operator's own code: the path stands in the configuration and never in a request.
"""

import importlib
from pathlib import Path
from typing import Any, cast

from deployments.engines.base import Engine, unavailable
from deployments.engines.options import CustomOptions
from deployments.spec import ModelSpec
from deployments.types import Signature

_METHODS = ("prepare", "run", "finish", "size_bytes", "warm_up", "close")


def load_custom(path: Path, spec: ModelSpec, device: str) -> Engine:
    """Import `options.factory`, call it with (path, spec, device, **options.kwargs) and check what it gives.

    Raises:
        ModelUnavailable: it cannot be imported, or its object lacks part of the contract.
    """
    options = CustomOptions.model_validate(spec.options)
    engine = _import(options.factory, spec)(path, spec, device, **options.kwargs)
    lacks = [f"{name}()" for name in _METHODS if not callable(getattr(engine, name, None))]
    if not isinstance(getattr(engine, "signature", None), Signature):
        lacks.append("signature (a deployments.types.Signature)")
    if not isinstance(getattr(engine, "labels", None), tuple):
        lacks.append("labels (a tuple, () where there are none)")
    if lacks:
        raise unavailable(spec, f"{options.factory} lacks {', '.join(lacks)}; see deployments/engines/base.py")
    return cast(Engine, engine)


def _import(factory: str, spec: ModelSpec) -> Any:
    module_name, _, name = factory.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as exc:
        raise unavailable(spec, f"options.factory {factory!r} cannot be imported here: {exc}") from exc
    if not hasattr(module, name):
        raise unavailable(spec, f"options.factory: module {module_name} has no {name}")
    return getattr(module, name)
