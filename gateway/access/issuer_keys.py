"""The public keys of an OIDC issuer: fetched when they are needed, kept while it can't be reached, bounded in number.

OpenID Connect Discovery 1.0: `ISSUER/.well-known/openid-configuration` names the issuer and its `jwks_uri`, where its
keys are (RFC 7517), each with a `kid`. An issuer that changes its keys shows the new one before it signs with it.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from gateway.errors import IssuerUnavailable
from gateway.sign_in import is_safe

log = structlog.get_logger(__name__)

FETCH_SECONDS = 5.0
FRESH_SECONDS = 600.0
"""After which keys are fetched again, behind the token that asked."""
OLD_SECONDS = 2 * FRESH_SECONDS
"""After which a token waits for that."""
STALE_SECONDS = 24 * 3600.0
"""For which keys are used on while the issuer can't be reached."""
PAUSE_SECONDS = 10.0
"""Between two fetches, however many tokens name keys that nobody knows."""
LARGEST_BYTES = 512 * 1024
MOST_KEYS = 100
ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""What a token may be signed with, by the kind of key: asymmetric algorithms alone."""


class _Discovery(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class UnknownKeyError(Exception):
    """The issuer shows no key of this name for this algorithm."""


class IssuerKeys:
    """The keys of one issuer, by name and algorithm."""

    def __init__(self, issuer: str, steady: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._steady = steady
        self._client = httpx.AsyncClient(timeout=FETCH_SECONDS, follow_redirects=False)
        self._fetching = asyncio.Lock()
        self._keys: dict[tuple[str, str], PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._problem = ""
        self._later: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._later is not None:
            self._later.cancel()
            await asyncio.wait({self._later})
        await self._client.aclose()

    async def key(self, name: str, algorithm: str) -> PyJWK:
        """The key that a token says it was signed with.

        Raises UnknownKeyError, or IssuerUnavailable where nobody can say whether there is such a key.
        """
        known = self._keys.get((name, algorithm))
        if known is None or self._age() > OLD_SECONDS:
            await self._fetch_again()
            if self._age() > STALE_SECONDS:
                raise self._unavailable()
            known = self._keys.get((name, algorithm))
        elif self._age() > FRESH_SECONDS and (self._later is None or self._later.done()):
            self._later = asyncio.create_task(self._fetch_again(), name="issuer keys")
        if known is None:
            if self._problem:
                raise self._unavailable()
            raise UnknownKeyError
        return known

    def _age(self) -> float:
        """Seconds since the keys were fetched."""
        return self._steady() - self._fetched_at if self._fetched_at is not None else float("inf")

    def _unavailable(self) -> IssuerUnavailable:
        return IssuerUnavailable(
            f"The issuer of sign-in tokens does not tell its keys ({self._problem}): try again in a moment, or use an "
            "API key",
            retry_after=PAUSE_SECONDS,
        )

    async def _fetch_again(self) -> None:
        """Fetch the keys, but not more often than every PAUSE_SECONDS; the ones before stay where that fails."""
        async with self._fetching:
            now = self._steady()
            if self._tried_at is not None and now - self._tried_at < PAUSE_SECONDS:
                return
            try:
                async with asyncio.timeout(2 * FETCH_SECONDS):  # in all: the client's bound is for each piece
                    self._keys = _usable(await self._fetch())
                self._fetched_at, self._problem = now, ""
            except (httpx.HTTPError, msgspec.MsgspecError, ValueError, TimeoutError) as problem:
                self._problem = f"{type(problem).__name__}: {problem}".rstrip(": ")
                log.warning("the keys of sign-in tokens cannot be fetched", issuer=self._issuer, problem=self._problem)
            finally:
                self._tried_at = self._steady()

    async def _fetch(self) -> _KeySet:
        url = self._issuer.rstrip("/") + "/.well-known/openid-configuration"
        found = msgspec.json.decode(await self._get(url), type=_Discovery)
        if found.issuer != self._issuer:
            raise ValueError(f"it calls itself {found.issuer!r}, and HOSTLER_OIDC_ISSUER is another name")
        if not is_safe(found.jwks_uri):
            raise ValueError(f"its keys are at {found.jwks_uri!r}, which is not https")
        return msgspec.json.decode(await self._get(found.jwks_uri), type=_KeySet)

    async def _get(self, url: str) -> bytes:
        async with self._client.stream("GET", url, headers={"accept": "application/json"}) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ValueError(f"{url} answers {answer.status_code}")
            body = b""
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > LARGEST_BYTES:
                    raise ValueError(f"{url} answers with more than {LARGEST_BYTES} bytes")
            return body


def _usable(found: _KeySet) -> dict[tuple[str, str], PyJWK]:
    """The keys that sign, by name and each algorithm they may be used with; what is none of those is left out."""
    keys: dict[tuple[str, str], PyJWK] = {}
    for key in found.keys[:MOST_KEYS]:
        if key.get("use", "sig") != "sig":
            continue
        fitting = ALGORITHMS.get(str(key.get("kty")), ())
        for algorithm in fitting:
            if key.get("alg", algorithm) != algorithm:
                continue
            try:
                keys[str(key.get("kid", "")), algorithm] = PyJWK(key, algorithm)
            except PyJWTError:
                continue  # another curve, or parts that are missing
    return keys
