"""The audit trail: one JSON line for every administrative act, in the log of its own name, `serve_app.audit`.

Written for requests to admin routes (`http.py`), configurations taken over (`ingress.py`), keys that come and go
(`auth.py`). Holds names and ids, never a secret.
"""

import logging

import orjson

_AUDIT = logging.getLogger(__name__)


def audit(act: str, **facts: object) -> None:
    """Write one line."""
    _AUDIT.info("audit %s", orjson.dumps({"act": act, **facts}).decode())
    for handler in logging.getLogger("serve_app").handlers:
        handler.flush()  # at once: a process that dies must not take these lines with it
