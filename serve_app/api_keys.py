"""API keys: how they are made, what is kept of them, and whether one that is shown is right. No I/O.

A key is `me_<id>_<secret>`. The secret has 256 random bits, so one SHA-256 keeps it as well as a slow hash would. The
id is public: it finds the record, and stands in logs and lists. Used by `auth.py` and the `keys` commands.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
from pydantic import AwareDatetime, Field, ValidationError

from deployments.errors import Unauthenticated
from deployments.spec import Strict, explain
from serve_app.auth_config import PRIORITIES, Grant, PriorityClass
from serve_app.principals import Principal

PREFIX = "me_"
_KEY = re.compile(r"^me_([0-9a-f]{12})_([A-Za-z0-9_-]{43})$")
_NO_DIGEST = "0" * 64


class KeyRecord(Strict):
    """What is kept of a key."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    principal: str = Field(min_length=1, max_length=128, description="whose key it is; several keys may share one")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    grants: tuple[Grant, ...] = Field(default=(Grant(),), min_length=1)
    priority: PriorityClass = "standard"
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def state(self, now: datetime) -> str:
        """Return active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class KeyFile(Strict):
    """The file that `model-endpoint keys` writes: JSON, no secret in it."""

    keys: tuple[KeyRecord, ...] = ()


def new_key() -> tuple[str, str, str]:
    """Return a new key's id, the key itself, and the digest to keep."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return key_id, f"{PREFIX}{key_id}_{secret}", _digest(secret)


@dataclass(frozen=True, slots=True)
class _Entry:
    sha256: str
    expires: datetime | None
    principal: Principal


class KeyRing:
    """The keys in force, by id."""

    def __init__(self, records: Iterable[KeyRecord] = ()) -> None:
        self._entries = {record.id: _entry(record) for record in records if record.revoked is None}

    @property
    def ids(self) -> frozenset[str]:
        """Ids of all keys not revoked."""
        return frozenset(self._entries)

    def identify(self, key: str, now: datetime) -> Principal:
        """Return whose key this is. Takes as long for an unknown id as for a wrong secret.

        Raises:
            Unauthenticated: not one of ours, or expired.
        """
        match = _KEY.match(key)
        entry = self._entries.get(match[1]) if match else None
        given = _digest(match[2] if match else "")
        is_right = hmac.compare_digest(given, entry.sha256 if entry else _NO_DIGEST)
        if entry is None or not is_right:
            raise Unauthenticated("the API key is not valid")
        if entry.expires is not None and entry.expires <= now:
            raise Unauthenticated("the API key has expired; ask the operator for a new one")
        return entry.principal


def parse_key_file(text: str) -> tuple[KeyRing, dict[str, str]]:
    """Return the keys of a file and, by entry, why some are left out.

    Raises:
        ValueError: the file as a whole is not what `model-endpoint keys` writes.
    """
    try:
        data = orjson.loads(text)
        entries = data["keys"]
    except (ValueError, TypeError, KeyError):
        raise ValueError('not a key file: expected JSON {"keys": [...]}, as `model-endpoint keys` writes it') from None
    if not isinstance(entries, list):
        raise ValueError("not a key file: `keys` is not a list")
    records: dict[str, KeyRecord] = {}
    refused: dict[str, str] = {}
    for index, entry in enumerate(entries):
        try:
            record = KeyRecord.model_validate_json(orjson.dumps(entry))
        except ValidationError as exc:
            refused[f"keys[{index}]"] = explain(exc)
            continue
        if record.id in records:
            refused[f"keys[{index}]"] = f"id {record.id} is there already"
        records.setdefault(record.id, record)
    return KeyRing(records.values()), refused


def now_utc() -> datetime:
    """Return the time as key records hold it."""
    return datetime.now(UTC)


def _entry(record: KeyRecord) -> _Entry:
    scopes = tuple(grant.scope() for grant in record.grants)
    principal = Principal(record.principal, record.id, scopes, PRIORITIES[record.priority])
    return _Entry(record.sha256, record.expires, principal)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
