"""OAuth2 access tokens: signed by an issuer whose public keys are fetched, kept, and fetched again when they turn.

    no keys yet ──fetch──▶ fresh ──jwks_ttl_s──▶ stale (still used, fetched again meanwhile) ──MAX_STALE_S──▶ none
                             ▲── a token names an unknown key: fetched at once, but not more often than MIN_FETCH_S

One fetch at a time however many wait. Used by `auth.py`; the fetch and the clock are passed in.
"""

import asyncio
import contextvars
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import httpx
import jwt
import orjson

from deployments.errors import IdentityUnavailable, Unauthenticated
from deployments.types import MONOTONIC, Clock
from serve_app.auth_config import PRIORITIES, JwtConfig
from serve_app.principals import Principal

logger = logging.getLogger(__name__)

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]
MIN_FETCH_S = 10.0
MAX_STALE_S = 24 * 3600.0
_FETCH_TIMEOUT_S = 5.0
_MAX_KEYS_BYTES = 2**20
_MAX_TOKEN = 16 * 2**10
_MAX_REMEMBERED = 10_000
_REMEMBER_S = 60.0  # how long a verified token is not verified again


async def fetch_keys(url: str) -> bytes:
    """Return what is at `url`, bounded in size; each of its pieces, and whoever asks, in time."""
    async with httpx.AsyncClient(timeout=_FETCH_TIMEOUT_S) as client, client.stream("GET", url) as response:
        response.raise_for_status()
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _MAX_KEYS_BYTES:
                raise ValueError("the key set is too large")
        return body


class TokenVerifier:
    """Turns access tokens of one issuer into principals, named `jwt:` and the token's principal claim."""

    def __init__(self, config: JwtConfig, fetch: Fetch = fetch_keys, clock: Clock = MONOTONIC) -> None:
        self.config = config
        self.problem = ""  # why the last fetch failed
        self._fetch = fetch
        self._clock = clock
        self._document = b""
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._verified: dict[bytes, tuple[Principal, float]] = {}

    async def verify(self, token: str) -> Principal:
        """Return who holds this token.

        Raises:
            Unauthenticated: not signed by the issuer, for somebody else, or expired.
            IdentityUnavailable: the issuer's keys cannot be fetched.
        """
        if len(token) > _MAX_TOKEN:
            raise Unauthenticated("the access token is too long")
        await self._refresh_if_stale()
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        principal, until = self._verified.get(digest, (None, 0.0))
        if principal is not None and now < until:
            return principal
        principal, left_s = self._principal(await self._claims(token))
        while len(self._verified) >= _MAX_REMEMBERED:
            self._verified.pop(next(iter(self._verified)))
        self._verified[digest] = (principal, now + min(left_s, _REMEMBER_S))
        return principal

    async def aclose(self) -> None:
        """Stop fetching."""
        if self._fetching is not None:
            self._fetching.cancel()

    async def _claims(self, token: str) -> Mapping[str, Any]:
        config = self.config
        try:
            # NOTE: the bare key, so that `algorithms` and the token decide; many key sets name no algorithm.
            key = (await self._key(jwt.get_unverified_header(token).get("kid"))).key
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(config.algorithms),
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway_s,
                options={"require": ["exp", "iss", "aud", config.principal_claim]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the access token has expired") from None
        except (jwt.PyJWTError, ValueError) as exc:
            # NOTE: only the kind of failure: PyJWT's messages may repeat claims.
            raise Unauthenticated(f"the access token is not valid: {type(exc).__name__}") from None
        return claims

    def _principal(self, claims: Mapping[str, Any]) -> tuple[Principal, float]:
        """Return who it is and for how many seconds the token is still good."""
        config = self.config
        name = claims[config.principal_claim]
        if not isinstance(name, str) or not name:
            raise Unauthenticated(f"the access token's {config.principal_claim!r} is not a text")
        value = claims.get(config.grants_claim, ())
        values = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
        grants = [config.grants[v] for v in values if isinstance(v, str) and v in config.grants]
        priority = max((PRIORITIES[grant.priority] for grant in grants), default=0)
        principal = Principal(f"jwt:{name}"[:256], "", tuple(grant.scope() for grant in grants), priority)
        return principal, float(claims["exp"]) + config.leeway_s - _wall()

    async def _key(self, key_id: object) -> jwt.PyJWK:
        key = self._find(key_id)
        if key is None and self._may_fetch():
            await self._refresh()
            key = self._find(key_id)
        if key is not None:
            return key
        if not self._keys:
            raise IdentityUnavailable(
                "access tokens cannot be checked now: the issuer's keys are not at hand", retry_after_s=MIN_FETCH_S
            )
        raise Unauthenticated("the access token is signed by a key that its issuer does not publish")

    def _find(self, key_id: object) -> jwt.PyJWK | None:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id) if isinstance(key_id, str) else None

    def _may_fetch(self) -> bool:
        is_running = self._fetching is not None
        return is_running or self._tried_at is None or self._clock() - self._tried_at >= MIN_FETCH_S

    async def _refresh_if_stale(self) -> None:
        if self._fetched_at is None:
            return
        age = self._clock() - self._fetched_at
        if age > MAX_STALE_S:
            self._keys, self._fetched_at = {}, None
            self._verified.clear()
        elif age > self.config.jwks_ttl_s and self._fetching is None and self._may_fetch():
            self._start()

    async def _refresh(self) -> None:
        # NOTE: shielded: the request that starts the fetch may leave while others wait for it.
        await asyncio.shield(self._fetching or self._start())

    def _start(self) -> asyncio.Task[None]:
        self._tried_at = self._clock()
        self._fetching = asyncio.get_running_loop().create_task(self._fetch_keys(), context=contextvars.Context())
        return self._fetching

    async def _fetch_keys(self) -> None:
        try:
            async with asyncio.timeout(_FETCH_TIMEOUT_S):
                document = await self._fetch(self.config.jwks_url)
            found = jwt.PyJWKSet.from_dict(orjson.loads(document))
        except (httpx.HTTPError, jwt.PyJWTError, OSError, ValueError, TypeError, AttributeError) as exc:
            self.problem = f"{self.config.jwks_url}: {type(exc).__name__}"
            logger.warning("the issuer's keys cannot be fetched: %s", self.problem)
        else:
            keys = {key.key_id or "": key for key in found.keys if key.public_key_use in (None, "sig")}
            if document != self._document:
                self._verified.clear()  # what a withdrawn key signed is not good any more, even if another has its name
            self._document = document
            self._keys, self._fetched_at, self.problem = keys, self._clock(), ""
        finally:
            self._fetching = None


def _wall() -> float:
    return time.time()
