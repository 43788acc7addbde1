"""Composition root of the endpoint application: `import_path: serve_app.app:build` in `serve_config.yaml`."""

# NOTE: no `from __future__ import annotations` here: Serve validates `args` only if the annotation is a real class.

from ray import serve
from ray.serve import Application

from serve_app.config import EndpointArgs
from serve_app.ingress import Ingress


def build(args: EndpointArgs) -> Application:
    """Return the endpoint application; sizes and limits come from the YAML."""
    return serve.deployment(Ingress, name="Ingress").bind(args)
