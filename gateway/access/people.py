"""People who sign in with a token of a configured OIDC issuer in place of a key.

A token is verified once and then known for some minutes, by its SHA-256: requests of one person cost as much as those
of a key.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jwt
from jwt.exceptions import PyJWTError

from gateway.access.claims import principal_of
from gateway.access.credentials import digest
from gateway.access.issuer_keys import ALGORITHMS, IssuerKeys, UnknownKeyError
from gateway.errors import Unauthorized
from gateway.sign_in import Roles
from gateway.types import Principal

LEEWAY_SECONDS = 30.0
"""By which the issuer's clock and ours may differ."""
KNOWN_SECONDS = 300.0
"""After which a token is verified again: a key that its issuer has withdrawn opens for no longer."""
KNOWN_TOKENS = 10_000
LONGEST_TOKEN = 16 * 1024
REQUIRED = ["exp", "iss", "aud", "sub"]
ALLOWED = frozenset(algorithm for algorithms in ALGORITHMS.values() for algorithm in algorithms)


class People:
    """Verifies sign-in tokens."""

    def __init__(
        self,
        keys: IssuerKeys,
        issuer: str,
        audience: str,
        claim: str,
        roles: Roles,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`claim`: where a token names the person's roles; `roles`: which scopes each of them has."""
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._claim = claim
        self._roles = roles
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()

    async def close(self) -> None:
        """Let go of the connections to the issuer."""
        await self._keys.close()

    def known(self, token: bytes) -> Principal | None:
        """Whose token this is, if it was verified lately."""
        name = digest(token)
        found = self._known.get(name)
        if found is None:
            return None
        principal, until = found
        if until <= self._clock():
            del self._known[name]
            return None
        return principal

    async def verify(self, token: bytes) -> None:
        """Verify a token: it is `known` then. Raises Unauthorized, IssuerUnavailable."""
        claims = await self._claims(token)
        principal = principal_of(claims, self._claim, self._roles)
        now = self._clock()
        until = min(now + KNOWN_SECONDS, float(claims["exp"]) + LEEWAY_SECONDS)
        self._known[digest(token)] = (principal, until)
        if len(self._known) > KNOWN_TOKENS:
            self._known.popitem(last=False)

    async def _claims(self, token: bytes) -> dict[str, Any]:
        try:
            if len(token) > LONGEST_TOKEN:
                raise refused("it is too long")
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in ALLOWED:
                raise refused(f"it is signed with {algorithm!r}, and only {', '.join(sorted(ALLOWED))} are taken")
            key = await self._keys.key(str(header.get("kid", "")), str(algorithm))
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[str(algorithm)],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": REQUIRED},
            )
        except UnknownKeyError:
            raise refused("its issuer shows no key of that name") from None
        except (PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as problem:
            raise refused(str(problem)) from None
        return claims


def refused(why: str) -> Unauthorized:
    """The refusal of a token."""
    return Unauthorized(f"This sign-in token is not accepted: {why}. Sign in again, or use an API key")
