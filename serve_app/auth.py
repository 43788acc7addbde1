"""Who is it? API keys and access tokens, from HTTP headers or gRPC metadata: the gateway's `Identity`.

    Authorization: Bearer <key or token>     or     X-API-Key: <key>

Keys come from a file that is watched, so that creating, rotating and revoking one needs no deploy; a file that turns
bad leaves the keys before in force and says so in `/ready`. Built by `ingress.py`, which calls `refresh` every second.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from urllib.parse import unquote

from deployments.errors import Unauthenticated
from serve_app import references
from serve_app.addresses import is_loopback
from serve_app.api_keys import PREFIX, KeyRing, now_utc, parse_key_file
from serve_app.audit import audit
from serve_app.auth_config import AuthConfig, JwtConfig
from serve_app.config import EndpointConfig
from serve_app.jwt_tokens import Fetch, TokenVerifier, fetch_keys
from serve_app.principals import ANONYMOUS, Principal

logger = logging.getLogger(__name__)

_HOW = "send `Authorization: Bearer <key>` or `X-API-Key: <key>`"


class Authenticator:
    """Tells callers apart. `exposed_host` is the address the endpoint listens on if others reach it, else ""."""

    def __init__(self, fetch: Fetch = fetch_keys, now: Callable[[], datetime] = now_utc) -> None:
        self.exposed_host = "an address not known yet"
        self.problems: dict[str, str] = {}  # by place, what is wrong with keys and tokens now
        self._fetch = fetch
        self._now = now
        self._config = AuthConfig()
        self._anonymous = ANONYMOUS
        self._ring = KeyRing()
        self._stamp: object = None
        self._verifier: TokenVerifier | None = None

    def configure(self, config: EndpointConfig) -> None:
        """Apply the endpoint's user_config; what stayed the same keeps its state."""
        old, self._config = self._config, config.auth
        self._anonymous = ANONYMOUS
        if config.auth.is_configured:
            self._anonymous = Principal("anonymous", scopes=tuple(grant.scope() for grant in config.auth.anonymous))
        if config.auth.keys != old.keys:
            self._stamp, self._ring = None, KeyRing()
        if config.auth.jwt != old.jwt:
            self._verifier = self._make_verifier(config.auth.jwt)
        self.refresh()

    def refresh(self) -> None:
        """Read the key file again if it has changed, and note what is wrong."""
        self.problems.pop("auth.jwt", None)
        if self._verifier is not None and self._verifier.problem:
            self.problems["auth.jwt"] = self._verifier.problem
        reference = self._config.keys
        if reference is None:
            self._forget("auth.keys")
        elif (stamp := _stamp(reference)) != self._stamp:
            self._read(reference)
            self._stamp = stamp

    def admits(self, peer: str) -> bool:
        """Return whether a gRPC peer ("ipv4:127.0.0.1:5000") may come in without any authentication configured.

        Serve's gRPC servers listen on every address of the machine, whatever host is configured.
        """
        if self._config.is_configured or self._config.allow_anonymous:
            return True
        kind, _, address = peer.partition(":")
        host = unquote(address).rpartition(":")[0].strip("[]")
        return kind == "unix" or is_loopback(host)

    async def identify(self, headers: Mapping[str, str]) -> Principal:
        """Return who sent these headers (lower-case names).

        Raises:
            Unauthenticated: no credential where one is needed, or a wrong one.
            IdentityUnavailable: the token issuer's keys cannot be fetched.
        """
        config = self._config
        if not config.is_configured:
            if self.exposed_host and not config.allow_anonymous:
                raise Unauthenticated(
                    f"this endpoint listens on {self.exposed_host} and has no authentication: "
                    "configure `auth.keys` or `auth.jwt`, or write `auth.allow_anonymous: true`"
                )
            return ANONYMOUS
        credential = _credential(headers)
        if credential is None:
            if config.allow_anonymous:
                return self._anonymous
            raise Unauthenticated(f"a key or access token is needed; {_HOW}")
        if self._verifier is not None and not credential.startswith(PREFIX) and credential.count(".") == 2:
            return await self._verifier.verify(credential)
        return self._ring.identify(credential, self._now())

    def _read(self, reference: str) -> None:
        self._forget("auth.keys")
        try:
            ring, refused = parse_key_file(references.read(reference))
        except ValueError as exc:
            # NOTE: the keys before stay in force: a bad edit must not lock everybody out.
            self.problems["auth.keys"] = str(exc)
            logger.error("auth.keys: %s; the keys before stay in force", exc)
            return
        for place, reason in refused.items():
            self.problems[f"auth.keys.{place}"] = reason
            logger.error("auth.keys: %s: %s", place, reason)
        added, removed = ring.ids - self._ring.ids, self._ring.ids - ring.ids
        if added or removed:
            audit("keys", added=sorted(added), removed=sorted(removed))
        self._ring = ring

    def _forget(self, prefix: str) -> None:
        for place in [place for place in self.problems if place.startswith(prefix)]:
            del self.problems[place]

    def _make_verifier(self, config: JwtConfig | None) -> TokenVerifier | None:
        return TokenVerifier(config, self._fetch) if config is not None else None


def _credential(headers: Mapping[str, str]) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key", "").strip() or None


def _stamp(reference: str) -> object:
    """Return something that differs once the file's content may differ; the same for ever for a variable."""
    path = references.path_of(reference)
    if path is None:
        return reference
    try:
        facts = path.stat()
    except OSError:
        return "missing"
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
