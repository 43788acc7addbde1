"""An issuer of access tokens for tests: a real server of its public keys on loopback, and tokens signed by them."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

ISSUER, AUDIENCE = "https://issuer.example", "model-endpoint"


class Issuer:
    """Signs with its newest key, publishes the newest two."""

    def __init__(self) -> None:
        self._keys: list[rsa.RSAPrivateKey] = []
        self.url = ""
        self.rotate()

    def rotate(self) -> None:
        self._keys.append(rsa.generate_private_key(public_exponent=65537, key_size=2048))

    def token(self, **claims: Any) -> str:
        body = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 600, "scope": "use"}
        return jwt.encode(body | claims, self._keys[-1], "RS256", {"kid": str(len(self._keys) - 1)})

    def key_set(self) -> bytes:
        published = list(enumerate(self._keys))[-2:]
        to_jwk = jwt.algorithms.RSAAlgorithm.to_jwk
        return json.dumps(
            {"keys": [json.loads(to_jwk(k.public_key())) | {"kid": str(n)} for n, k in published]}
        ).encode()


@contextmanager
def serving() -> Iterator[Issuer]:
    issuer = Issuer()

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(issuer.key_set())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Keys)
    issuer.url = f"http://127.0.0.1:{server.server_port}/keys"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
