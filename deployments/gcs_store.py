"""What operators ordered of models over the API, kept where it outlives the process that took it: in Ray's GCS.

Read and written by `deployments.catalog` of one pool; the list of models itself is configuration, never here. Blocks:
call it in a thread.
"""

import json

from ray.experimental import internal_kv

from deployments.orders import Order, Orders

_NAMESPACE = b"model_endpoint"


class GcsStore:
    """The orders of one pool application, in the cluster's key-value store: they last as long as the cluster."""

    def __init__(self, pool: str) -> None:
        self._key = f"orders/{pool}".encode()

    def load(self) -> Orders:
        """Return the saved orders."""
        saved = internal_kv._internal_kv_get(self._key, namespace=_NAMESPACE)
        return {key: Order(order) for key, order in json.loads(saved or b"{}").items()}

    def save(self, orders: Orders) -> None:
        """Save these orders."""
        value = json.dumps(dict(orders)).encode()
        internal_kv._internal_kv_put(self._key, value, overwrite=True, namespace=_NAMESPACE)
