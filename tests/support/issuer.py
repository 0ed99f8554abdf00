"""A small OIDC issuer for tests: real HTTP, keys that can be changed, tokens as a person would have them."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

AUDIENCE = "hostler"


class Issuer:
    """An issuer on a free port of this machine, for the length of a `with` block."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        """Private keys by name; all of them are shown."""
        self.fetches = 0
        """How often the keys were asked for."""
        self.status = 200
        self.says_issuer: str | None = None
        """What it calls itself, if not by its address."""
        self.extra_keys: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.add("first")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, *, kind: str = "EC") -> None:
        """Show one more key, `EC` or `RSA`."""
        if kind == "EC":
            self.keys[name] = ec.generate_private_key(ec.SECP256R1())
        else:
            self.keys[name] = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, key: str = "first", *, private: Any = None, algorithm: str = "", **claims: Any) -> str:
        """A token that is good for ten minutes, with these claims on top; one that is None is left out."""
        private = private or self.keys[key]
        now = int(time.time())
        said = {"iss": self.url, "aud": AUDIENCE, "sub": "u-1", "iat": now, "exp": now + 600, **claims}
        usual = "ES256" if isinstance(private, ec.EllipticCurvePrivateKey) else "RS256"
        payload = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(payload, private, algorithm or usual, headers={"kid": key})

    def documents(self) -> dict[str, Any]:
        """What is served, by path."""
        shown = []
        for name, key in self.keys.items():
            algorithms = jwt.algorithms
            kind = algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else algorithms.RSAAlgorithm
            shown.append({**kind.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"})
        return {
            "/.well-known/openid-configuration": {
                "issuer": self.says_issuer or self.url,
                "jwks_uri": f"{self.url}/keys",
            },
            "/keys": {"keys": [*self.extra_keys, *shown]},
        }


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer one of the documents."""
            document = issuer.documents().get(self.path)
            if self.path == "/keys":
                issuer.fetches += 1
            body = json.dumps(document).encode()
            self.send_response(issuer.status if document is not None else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            """Say nothing."""

    return Handler
