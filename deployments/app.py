"""Composition root of a pool application: `import_path: deployments.app:build` in `serve_config.yaml`."""

# NOTE: no `from __future__ import annotations` here: Serve validates `args` only if the annotation is a real class.

from ray import serve
from ray.serve import Application

from deployments.catalog import Catalog
from deployments.pool import Pool
from deployments.spec import PoolArgs


def build(args: PoolArgs) -> Application:
    """Return the pool application: `Catalog` in front, `Pool` behind; sizes and limits come from the YAML."""
    pool = serve.deployment(Pool, name="Pool").bind(args)
    return serve.deployment(Catalog, name="Catalog").bind(pool)
