"""All keys in memory, by digest: the check of a request's credential costs one SHA-256 and no SQL."""

import time
from collections.abc import Callable, Iterable

from gateway.access.credentials import digest, from_headers, mint, well_formed
from gateway.access.store import KeyStore, StoredKey
from gateway.errors import Forbidden, NotFound, Unauthorized
from gateway.types import Principal, Scope

ADMIN_ID = "admin"


class Keyring:
    """Verifies credentials, and is the only writer of the key store."""

    def __init__(self, store: KeyStore, admin_key: str, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        everything = frozenset(Scope)
        self._admin = {digest(admin_key): Principal(ADMIN_ID, "HOSTLER_ADMIN_KEY", everything, frozenset({"*"}))}
        self._by_digest: dict[bytes, Principal] = dict(self._admin)

    async def load(self) -> None:
        """Read all keys from the store."""
        keys = await self._store.all()
        self._by_digest = {key.digest: key.principal() for key in keys} | self._admin

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Who sent these headers. Raises Unauthorized.

        The look-up is by SHA-256, so its timing tells nothing of the key.
        """
        key = from_headers(headers)
        if key is None:
            raise Unauthorized(
                "No API key was sent: add the header 'Authorization: Bearer hst_…' (the first key is "
                "HOSTLER_ADMIN_KEY in .env; more are made with POST /api/keys)"
            )
        principal = self._by_digest.get(digest(key))
        if principal is None:
            hint = "" if well_formed(key) else " (it is not even well-formed: was it copied whole?)"
            raise Unauthorized(
                f"This API key is not known{hint}: ask an admin for one, or see HOSTLER_ADMIN_KEY in .env"
            )
        if principal.expires_at is not None and principal.expires_at <= self._clock():
            raise Unauthorized("This API key has expired: ask an admin for a new one")
        return principal

    def authorize(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> Principal:
        """As authenticate, and the key must have the scope. Raises Unauthorized, Forbidden."""
        principal = self.authenticate(headers)
        if not principal.may(scope):
            raise Forbidden(f"This API key has no scope '{scope}': use one that has, or ask an admin to make one")
        return principal

    async def create(
        self, name: str, scopes: frozenset[Scope], endpoints: frozenset[str], expires_at: float | None
    ) -> tuple[StoredKey, str]:
        """Make and store a key; the second part is the key itself, which nothing can show again."""
        key_id, key = mint()
        stored = StoredKey(
            id=key_id,
            name=name,
            digest=digest(key),
            scopes=scopes,
            endpoints=endpoints,
            created_at=self._clock(),
            expires_at=expires_at,
        )
        await self._store.add(stored)
        self._by_digest[stored.digest] = stored.principal()
        return stored, key

    async def all(self) -> list[StoredKey]:
        """Every stored key, oldest first; the admin key of the environment is not among them."""
        return await self._store.all()

    async def revoke(self, key_id: str) -> None:
        """Delete a key; the next request with it is refused. Raises NotFound."""
        if not await self._store.remove(key_id):
            raise NotFound(f"There is no key with the id {key_id!r}: GET /api/keys lists them")
        self._by_digest = {kept: who for kept, who in self._by_digest.items() if who.key_id != key_id}
