"""What outlives the process that learned it, in Ray's GCS: orders of operators, and what names stand for.

The list of models itself is configuration, never here. Orders are read and written by `deployments.catalog` of one
pool, names by the ingress. Blocks: call it in a thread.
"""

import json

from ray.experimental import internal_kv

from deployments.orders import Order, Orders

_NAMESPACE = b"model_endpoint"


class GcsValue:
    """One value in the cluster's key-value store: it lasts as long as the cluster."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def load(self) -> bytes:
        """Return the saved value; empty where there is none."""
        return internal_kv._internal_kv_get(self._key, namespace=_NAMESPACE) or b""

    def save(self, saved: bytes) -> None:
        """Save this value."""
        internal_kv._internal_kv_put(self._key, saved, overwrite=True, namespace=_NAMESPACE)


class GcsStore:
    """The orders of one pool application."""

    def __init__(self, pool: str) -> None:
        self._value = GcsValue(f"orders/{pool}")

    def load(self) -> Orders:
        """Return the saved orders."""
        return {key: Order.parse(order) for key, order in json.loads(self._value.load() or b"{}").items()}

    def save(self, orders: Orders) -> None:
        """Save these orders."""
        self._value.save(json.dumps({key: str(order) for key, order in orders.items()}).encode())
