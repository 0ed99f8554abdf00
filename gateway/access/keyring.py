"""All keys in memory, by their public id: the check of a request's credential costs one SHA-256 and no SQL."""

import asyncio
import time
from collections.abc import Callable, Mapping
from hmac import compare_digest
from typing import Any, Protocol

import msgspec

from gateway.access.credentials import Credential, credential_of, digest, from_headers, looks_like_token, mint
from gateway.access.store import KeyStore, shown
from gateway.access.types import AccessEvent, KeySpec, StoredKey
from gateway.database.chain import Change
from gateway.errors import BadRequest, Forbidden, NotFound, TokenUnverified, Unauthorized
from gateway.types import PERSON, Principal, Scope

ADMIN_ID = "admin"
LATEST = 10_000_000_000
"""Unix seconds; what is larger is meant as milliseconds, and would hardly ever expire."""


class Tokens(Protocol):
    """Sign-in tokens of people (`access.people.People`)."""

    def known(self, token: bytes) -> Principal | None:
        """Whose token this is, if it was verified lately."""
        ...

    async def verify(self, token: bytes) -> None:
        """Verify a token: it is `known` then. Raises Unauthorized, IssuerUnavailable."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Known:
    """A key as requests meet it."""

    __slots__ = ("digest", "previous_digest", "previous_until", "principal")

    def __init__(self, key: StoredKey) -> None:
        self.principal = key.principal()
        self.digest = key.digest
        self.previous_digest = key.previous_digest
        self.previous_until = key.previous_until or 0.0

    def succeeds(self, given: bytes, now: float) -> bool:
        """Whether this is the digest of its predecessor, which still opens."""
        previous = self.previous_digest
        return previous is not None and compare_digest(previous, given) and now < self.previous_until


class Keyring:
    """Verifies credentials, and is the only writer of the key store."""

    def __init__(self, store: KeyStore, admin_key: str, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._writing = asyncio.Lock()
        self._admin_digest = digest(admin_key.encode())
        self._admin = Principal(ADMIN_ID, "HOSTLER_ADMIN_KEY", frozenset(Scope), frozenset({"*"}))
        self._stored: dict[str, StoredKey] = {}
        self._known: dict[str, Known] = {}
        self._used: set[str] = set()
        self.people: Tokens | None = None
        """Who signs in with a token in place of a key; None: nobody does."""
        self.noticed: Callable[[AccessEvent], None] = lambda _: None
        """Called with every sign-in that failed and every change of a key, after it is stored."""
        self.kept: Callable[[StoredKey], None] = lambda _: None
        """Called with every key that is loaded, made or changed: its limits hold from now on."""
        self.dropped: Callable[[str], None] = lambda _: None
        """Called with the id of a key that is revoked."""

    async def load(self) -> None:
        """Read all keys from the store."""
        self._stored, self._known = {}, {}
        for key in await self._store.all():
            self._keep(key)

    def _keep(self, key: StoredKey) -> None:
        self._stored[key.id] = key
        self._known[key.id] = Known(key)
        self.kept(key)

    # credentials

    credential = staticmethod(credential_of)

    def authenticate(self, headers: Mapping[bytes, bytes]) -> Principal:
        """Who sent these headers. Raises Unauthorized."""
        return self.identify(credential_of(headers))

    def identify(self, credential: Credential | None) -> Principal:
        """Whose credential this is now. Raises Unauthorized.

        A key that is not well-formed is looked up nowhere. Found is a key by its public id, and then the hashes are
        compared in constant time.
        """
        if credential is None:
            raise self._refused(
                "missing",
                "No API key was sent: add the header 'Authorization: Bearer hst_…' (the first key is "
                "HOSTLER_ADMIN_KEY in .env; more are made with POST /api/keys)",
            )
        given = credential.digest
        known = self._known.get(credential.key_id) if credential.key_id else None
        if known is None or not (compare_digest(known.digest, given) or known.succeeds(given, self._clock())):
            if compare_digest(self._admin_digest, given):
                return self._admin
            if self.people is not None and looks_like_token(credential.text):
                return self._person(self.people, credential.text)
            raise self._unknown(credential)
        principal = known.principal
        if principal.expires_at is not None and principal.expires_at <= self._clock():
            raise self._refused("expired", "This API key has expired: ask an admin for a new one", principal.key_id)
        self._used.add(principal.key_id)
        return principal

    def opens(self, key_id: str) -> bool:
        """Whether who was let in by this id would be still: a key that was not revoked and has not expired.

        Of people nothing is known but their tokens, which end by themselves.
        """
        known = self._known.get(key_id)
        if known is None:
            return key_id == ADMIN_ID or key_id.startswith(PERSON)
        expires_at = known.principal.expires_at
        return expires_at is None or expires_at > self._clock()

    def _person(self, people: Tokens, token: bytes) -> Principal:
        person = people.known(token)
        if person is None:
            raise TokenUnverified("This sign-in token was not verified: sign in again, or use an API key")
        return person

    def _unknown(self, credential: Credential) -> Unauthorized:
        fine = credential.key_id != ""
        hint = "" if fine else " (it is not even well-formed: was it copied whole?)"
        return self._refused(
            "unknown" if fine else "malformed",
            f"This API key is not known{hint}: ask an admin for one, or see HOSTLER_ADMIN_KEY in .env",
            credential.key_id,
        )

    def _refused(self, reason: str, message: str, key_id: str = "") -> Unauthorized:
        self.noticed(AccessEvent("sign_in_failed", key_id, reason))
        return Unauthorized(message)

    def authorize(self, headers: Mapping[bytes, bytes], scope: Scope) -> Principal:
        """As authenticate, and the key must have the scope. Raises Unauthorized, Forbidden."""
        return self.verify(credential_of(headers), scope)

    def verify(self, credential: Credential | None, scope: Scope) -> Principal:
        """As authorize, for who has taken the credential out of the headers. Raises Unauthorized, Forbidden."""
        principal = self.identify(credential)
        if not principal.may(scope):
            error = Forbidden(f"This API key has no scope '{scope}': use one that has, or ask an admin to make one")
            error.scope, error.who = scope.value, principal
            raise error
        return principal

    async def sign_in(self, headers: Mapping[bytes, bytes], scope: Scope) -> Principal:
        """As authorize, where that raised TokenUnverified. Raises Unauthorized, Forbidden, IssuerUnavailable."""
        token = from_headers(headers)
        if self.people is not None and token is not None:
            try:
                await self.people.verify(token)
            except Unauthorized:
                self.noticed(AccessEvent("sign_in_failed", reason="token"))
                raise
        return self.authorize(headers, scope)

    async def admit(self, headers: Mapping[bytes, bytes], scope: Scope) -> Principal:
        """As authorize, for people too. Raises Unauthorized, Forbidden, IssuerUnavailable."""
        try:
            return self.authorize(headers, scope)
        except TokenUnverified:
            return await self.sign_in(headers, scope)

    # keys

    def all(self) -> list[StoredKey]:
        """Every stored key, oldest first; the admin key of the environment is not among them."""
        return sorted(self._stored.values(), key=lambda key: (key.created_at, key.id))

    def get(self, key_id: str) -> StoredKey:
        """One stored key. Raises NotFound."""
        found = self._stored.get(key_id)
        if found is None:
            raise NotFound(f"There is no key with the id {key_id!r}: GET /api/keys lists them")
        return found

    async def create(self, spec: KeySpec) -> tuple[StoredKey, str]:
        """Make and store a key; the second part is the key itself, which nothing can show again. Raises BadRequest."""
        self._check(spec)
        key_id, key = mint()
        stored = StoredKey(id=key_id, spec=spec, digest=digest(key.encode()), created_at=self._clock())
        async with self._writing:
            await self._store.add(stored)
            self._keep(stored)
        self.noticed(AccessEvent("key_created", key_id, after=spec))
        return stored, key

    async def change(self, key_id: str, patch: Mapping[str, Any]) -> StoredKey:
        """Change some fields of a key. Raises NotFound, BadRequest; then nothing has changed."""
        async with self._writing:
            old = self.get(key_id)
            try:
                spec = msgspec.convert({**msgspec.to_builtins(old.spec), **patch}, KeySpec)
            except msgspec.ValidationError as problem:
                raise BadRequest(f"The change does not fit: {problem}") from None
            self._check(spec, old.spec)
            change = Change("key.change", key_id, shown(old.spec), shown(spec))
            stored = await self._replace(msgspec.structs.replace(old, spec=spec), change)
        self.noticed(AccessEvent("key_changed", key_id, before=old.spec, after=spec))
        return stored

    async def rotate(self, key_id: str, overlap_seconds: float) -> tuple[StoredKey, str]:
        """Give a key a new secret. The one before opens for so long still, the one before that no more.

        The id stays, and with it name, limits, budget and usage. Raises NotFound.
        """
        async with self._writing:
            old = self.get(key_id)
            _, key = mint(key_id)
            until = self._clock() + overlap_seconds
            stored = await self._replace(
                msgspec.structs.replace(
                    old, digest=digest(key.encode()), previous_digest=old.digest, previous_until=until
                ),
                Change("key.rotate", key_id, None, {"previous_until": until}),
            )
        self.noticed(AccessEvent("key_rotated", key_id, before=old.spec, after=old.spec))
        return stored, key

    async def _replace(self, key: StoredKey, change: Change) -> StoredKey:
        if not await self._store.replace(key, change):
            raise NotFound(f"There is no key with the id {key.id!r} any more")
        self._keep(key)
        return key

    async def revoke(self, key_id: str) -> None:
        """Delete a key; the next request with it is refused. One that can't be read is deleted too. Raises NotFound."""
        async with self._writing:
            if await self._store.discard(key_id):
                return
            old = self.get(key_id)
            await self._store.remove(old)
            del self._stored[key_id], self._known[key_id]
            self.dropped(key_id)
        self.noticed(AccessEvent("key_revoked", key_id, before=old.spec))

    def _check(self, spec: KeySpec, before: KeySpec | None = None) -> None:
        if not spec.scopes:
            raise BadRequest("scopes is empty: such a key could do nothing", param="scopes")
        is_new = before is None or spec.expires_at != before.expires_at
        if is_new and spec.expires_at is not None and spec.expires_at > LATEST:
            raise BadRequest(
                "expires_at lies beyond the year 2286: give Unix seconds, not milliseconds, or null", param="expires_at"
            )
        if is_new and spec.expires_at is not None and spec.expires_at <= self._clock():
            raise BadRequest(
                "expires_at lies in the past: give Unix seconds in the future, or null", param="expires_at"
            )

    # last use

    async def write_used(self) -> None:
        """Store when keys were used last: now, for all that were since the last time. Raises DatabaseError."""
        used, self._used = self._used, set()
        if not used:
            return
        now = self._clock()
        try:
            await self._store.mark_used(used, now)
        except BaseException:
            self._used |= used
            raise
        for key_id in used & self._stored.keys():
            self._stored[key_id] = msgspec.structs.replace(self._stored[key_id], last_used_at=now)
