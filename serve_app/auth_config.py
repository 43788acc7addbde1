"""What an operator writes about who may ask: `auth` in the Ingress's user_config; the grants in it and in key files."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from deployments.spec import Strict
from serve_app.addresses import is_loopback
from serve_app.principals import Scope
from serve_app.protocols.types import Action
from serve_app.references import Reference

PRIORITIES = {"high": 1, "standard": 0, "low": -1}
PriorityClass = Literal["high", "standard", "low"]


class Grant(Strict):
    """What a key or a token may do."""

    actions: tuple[Literal["infer", "read", "admin", "metrics"], ...] = Field(
        default=("infer", "read"),
        min_length=1,
        description="infer, read (models, status), admin (load, unload), metrics",
    )
    models: tuple[str, ...] = Field(default=("*",), min_length=1, description="globs over `name` and `name:version`")

    def scope(self) -> Scope:
        """Return it as the gateway compares it."""
        return Scope(frozenset(map(Action, self.actions)), self.models)


class TokenGrant(Grant):
    """What holders of tokens with a certain claim value may do."""

    priority: PriorityClass = Field(default="standard", description="whose work waits when there is too much of it")


class JwtConfig(Strict):
    """OAuth2 / OpenID Connect access tokens."""

    issuer: str = Field(min_length=1, description="the `iss` a token must have")
    audience: str = Field(min_length=1, description="the `aud` a token must have")
    jwks_url: str = Field(description="where the issuer publishes its keys; https, or http on this machine")
    algorithms: tuple[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"], ...
    ] = Field(default=("RS256",), min_length=1, description="signatures accepted, whatever a token's header says")
    leeway_s: float = Field(default=30.0, ge=0, le=300, description="how far the issuer's clock may be off")
    principal_claim: str = Field(default="sub", min_length=1, description="the claim that names who asks")
    grants_claim: str = Field(
        default="scope", min_length=1, description="the claim whose values are looked up in grants"
    )
    grants: dict[str, TokenGrant] = Field(description="what each value of that claim may do; others may do nothing")
    jwks_ttl_s: float = Field(default=300.0, gt=0, description="how long fetched keys count as fresh")

    @field_validator("jwks_url")
    @classmethod
    def _safe(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            return value
        raise ValueError("use https: whoever can change these keys on the way can sign any token")


class AuthConfig(Strict):
    """Who may ask. With neither `keys` nor `jwt`, everybody, but only on a loopback address."""

    keys: Reference | None = Field(
        default=None, description="API keys: env:NAME or file:/path of what `model-endpoint keys` wrote; watched"
    )
    jwt: JwtConfig | None = None
    allow_anonymous: bool = Field(
        default=False, description="let requests without a credential in, also from other machines"
    )
    anonymous: tuple[Grant, ...] = Field(
        default=(Grant(actions=("infer", "read", "admin", "metrics")),), description="what these may do"
    )

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if "anonymous" in self.model_fields_set and not self.allow_anonymous:
            raise ValueError("anonymous needs allow_anonymous: true")
        return self

    @property
    def is_configured(self) -> bool:
        """Whether anybody can be told from anybody else."""
        return self.keys is not None or self.jwt is not None
