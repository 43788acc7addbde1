"""Access tokens against a real key server on loopback, and the rules of fetching under virtual time."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic import ValidationError

from deployments.errors import IdentityUnavailable, ServeError, Unauthenticated
from serve_app import jwt_tokens
from serve_app.auth import Authenticator
from serve_app.auth_config import AuthConfig, JwtConfig
from serve_app.config import EndpointConfig
from serve_app.jwt_tokens import MAX_STALE_S, MIN_FETCH_S, TokenVerifier
from serve_app.protocols.types import Action

ISSUER, AUDIENCE = "https://issuer.example", "model-endpoint"
KEYS: dict[str, Any] = {name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("k1", "k2")}
KEYS["ec"] = ec.generate_private_key(ec.SECP256R1())
GRANTS = {
    "endpoint.infer": {"actions": ["infer"], "models": ["mini*"], "priority": "low"},
    "endpoint.admin": {"actions": ["admin", "read"], "priority": "high"},
}


def key_set(*names: str) -> bytes:
    algorithms = {name: jwt.algorithms.ECAlgorithm if name == "ec" else jwt.algorithms.RSAAlgorithm for name in names}
    keys = [json.loads(algorithms[n].to_jwk(KEYS[n].public_key())) | {"kid": n, "use": "sig"} for n in names]
    return json.dumps({"keys": keys}).encode()


def token(key: str = "k1", algorithm: str = "RS256", signed_by: Any = None, **claims: Any) -> str:
    body = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 600, "scope": "openid endpoint.infer"}
    body = {name: value for name, value in (body | claims).items() if value is not None}
    return jwt.encode(body, KEYS[key] if signed_by is None else signed_by, algorithm=algorithm, headers={"kid": key})


def config(url: str = "https://issuer.example/keys", **fields: Any) -> JwtConfig:
    values = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": url, "grants": GRANTS, **fields}
    return JwtConfig.model_validate(values)


class Issuer:
    """Virtual time and a key set that may be out of reach."""

    def __init__(self, *names: str, **fields: Any) -> None:
        self.names = names
        self.now = 0.0
        self.n_fetched = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.verifier = TokenVerifier(config(**fields), self.fetch, lambda: self.now)

    async def fetch(self, url: str) -> bytes:
        self.n_fetched += 1
        await self.gate.wait()
        if self.error:
            raise self.error
        return key_set(*self.names)


async def test_a_good_token_is_a_principal_with_what_its_scopes_grant() -> None:
    issuer = Issuer("k1", "k2")
    principal = await issuer.verifier.verify(token())
    assert (principal.name, principal.credential, principal.priority) == ("jwt:alice", "", -1)
    assert principal.may(Action.INFER, "minilm")
    assert not principal.may(Action.INFER, "other")
    assert not principal.may(Action.ADMIN)
    both = await issuer.verifier.verify(token("k2", scope=["endpoint.admin", "endpoint.infer"]))
    assert both.priority == 1
    assert both.may(Action.ADMIN)
    assert issuer.n_fetched == 1


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"exp": time.time() - 60}, "expired"),
        ({"exp": None}, "MissingRequiredClaim"),
        ({"iss": "https://other.example"}, "InvalidIssuer"),
        ({"aud": "another"}, "InvalidAudience"),
        ({"aud": None}, "MissingRequiredClaim"),
        ({"nbf": time.time() + 86400}, "ImmatureSignature"),
        ({"sub": None}, "MissingRequiredClaim"),
        ({"sub": ""}, "not a text"),
        ({"signed_by": KEYS["k2"]}, "InvalidSignature"),
        ({"key": "k9", "signed_by": KEYS["k1"]}, "does not publish"),
        ({"key": "k1", "algorithm": "RS512"}, "InvalidAlgorithm"),
        ({"key": "k1", "algorithm": "HS256", "signed_by": "x" * 64}, "InvalidAlgorithm"),
        ({"key": "k1", "algorithm": "none", "signed_by": ""}, "InvalidAlgorithm"),
    ],
)
async def test_anything_else_is_nobody(claims: dict[str, Any], said: str) -> None:
    with pytest.raises(Unauthenticated, match=said) as caught:
        await Issuer("k1", "k2").verifier.verify(token(**claims))
    assert "alice" not in caught.value.message


@pytest.mark.parametrize("text", ["a.b.c", "..", "x" * 20_000 + ".b.c", "é.é.é"])
async def test_what_is_not_a_token_is_nobody(text: str) -> None:
    with pytest.raises(Unauthenticated):
        await Issuer("k1").verifier.verify(text)


async def test_the_clock_of_the_issuer_may_be_off_by_the_leeway() -> None:
    late = token(exp=time.time() - 20)
    assert (await Issuer("k1").verifier.verify(late)).name == "jwt:alice"
    with pytest.raises(Unauthenticated):
        await Issuer("k1", leeway_s=5).verifier.verify(late)


async def test_the_algorithm_is_pinned_by_the_config_not_by_the_token() -> None:
    issuer = Issuer("ec", algorithms=["ES256"])
    assert (await issuer.verifier.verify(token("ec", "ES256"))).name == "jwt:alice"
    with pytest.raises(Unauthenticated):
        await Issuer("k1", algorithms=["ES256"]).verifier.verify(token())


async def test_a_new_signing_key_is_found_at_once_but_unknown_ones_cannot_make_us_fetch_for_ever() -> None:
    issuer = Issuer("k1")
    await issuer.verifier.verify(token("k1"))
    issuer.names, issuer.now = ("k1", "k2"), MIN_FETCH_S
    assert (await issuer.verifier.verify(token("k2"))).name == "jwt:alice"
    assert issuer.n_fetched == 2
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await issuer.verifier.verify(token("k9", signed_by=KEYS["k1"]))
    assert issuer.n_fetched == 2


async def test_a_withdrawn_key_ends_the_tokens_it_signed_even_those_seen_before() -> None:
    issuer = Issuer("k1", "k2", jwks_ttl_s=60)
    old = token("k1")
    await issuer.verifier.verify(old)
    issuer.names, issuer.now = ("k2",), 61.0
    await issuer.verifier.verify(token("k2"))  # starts a fetch in the background
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(Unauthenticated):
        await issuer.verifier.verify(old)


async def test_a_key_that_is_replaced_under_its_own_name_ends_the_tokens_it_signed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    issuer = Issuer("k1", jwks_ttl_s=30)
    old = token("k1")
    await issuer.verifier.verify(old)
    monkeypatch.setitem(KEYS, "k1", KEYS["k2"])
    issuer.now = 31.0
    await issuer.verifier.verify(old)  # remembered, and starts a fetch in the background
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(Unauthenticated):
        await issuer.verifier.verify(old)
    await issuer.verifier.verify(token("k1"))


async def test_an_issuer_out_of_reach_is_503_at_first_and_forgiven_later() -> None:
    issuer = Issuer("k1", jwks_ttl_s=60)
    issuer.error = OSError("no route")
    issuer.error = ValueError("no route")
    with pytest.raises(IdentityUnavailable) as caught:
        await issuer.verifier.verify(token())
    assert caught.value.status == 503
    assert caught.value.retry_after_s
    assert "ValueError" in issuer.verifier.problem
    issuer.error, issuer.now = None, MIN_FETCH_S
    assert (await issuer.verifier.verify(token())).name == "jwt:alice"
    issuer.error, issuer.now = ValueError("gone"), 1000.0
    for _ in range(3):
        assert (await issuer.verifier.verify(token(sub="bob"))).name == "jwt:bob"
        await asyncio.sleep(0)
    issuer.now += MAX_STALE_S
    with pytest.raises(IdentityUnavailable):
        await issuer.verifier.verify(token())


async def test_an_issuer_that_never_finishes_holds_up_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_tokens, "_FETCH_TIMEOUT_S", 0.05)
    issuer = Issuer("k1")
    issuer.gate.clear()
    async with asyncio.timeout(5):
        with pytest.raises(IdentityUnavailable):
            await issuer.verifier.verify(token())
    assert "TimeoutError" in issuer.verifier.problem
    issuer.gate.set()
    issuer.now = MIN_FETCH_S
    assert (await issuer.verifier.verify(token())).name == "jwt:alice"


async def test_one_fetch_serves_everybody_and_outlives_who_started_it() -> None:
    issuer = Issuer("k1")
    issuer.gate.clear()
    waiting = [asyncio.create_task(issuer.verifier.verify(token(sub=f"s{n}"))) for n in range(10)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    issuer.gate.set()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert issuer.n_fetched == 1
    assert isinstance(done[0], asyncio.CancelledError)
    assert all(not isinstance(one, BaseException) for one in done[1:])


@pytest.mark.parametrize("url", ["http://issuer.example/keys", "file:///etc/keys", "ftp://x/y"])
def test_keys_are_fetched_over_https_only(url: str) -> None:
    with pytest.raises(ValidationError, match="https"):
        config(url)


@pytest.mark.parametrize("algorithm", ["HS256", "none"])
def test_an_algorithm_with_a_shared_secret_cannot_be_configured(algorithm: str) -> None:
    with pytest.raises(ValidationError):
        config(algorithms=[algorithm])


@pytest.fixture
def server() -> Iterator[str]:
    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"x" * 2**21 if self.path == "/huge" else key_set("k1")
            self.send_response(302 if self.path == "/moved" else 200)
            self.send_header("Location", "/keys")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    httpd = HTTPServer(("127.0.0.1", 0), Keys)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize(
    ("path", "error"), [("/keys", None), ("/huge", IdentityUnavailable), ("/moved", IdentityUnavailable)]
)
async def test_keys_from_a_real_server_bounded_and_without_redirects(
    server: str, path: str, error: type[ServeError] | None
) -> None:
    auth = Authenticator()
    auth.configure(EndpointConfig(auth=AuthConfig(jwt=config(server + path))))
    headers = {"authorization": f"Bearer {token()}"}
    if error is None:
        assert (await auth.identify(headers)).name == "jwt:alice"
        return
    with pytest.raises(error):
        await auth.identify(headers)
    auth.refresh()
    assert server in auth.problems["auth.jwt"]
