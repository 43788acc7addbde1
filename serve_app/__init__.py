"""The endpoint: protocols, policies and the ingress deployment. Knows nothing of torch (design: ARCHITECTURE.md)."""

__version__ = "0.1.0"
