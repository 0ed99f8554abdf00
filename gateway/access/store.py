"""Keys in the database. A key itself is never stored, only its SHA-256."""

from typing import Any

import msgspec
import structlog

from gateway.database.connection import Database
from gateway.types import Principal, Scope

log = structlog.get_logger(__name__)


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table `keys`; times are Unix seconds."""

    id: str
    name: str
    digest: bytes
    scopes: frozenset[Scope]
    endpoints: frozenset[str]
    created_at: float
    expires_at: float | None = None

    def principal(self) -> Principal:
        """Who a caller with this key is."""
        return Principal(self.id, self.name, self.scopes, self.endpoints, self.expires_at)


def _decoded(row: tuple[Any, ...]) -> StoredKey | None:
    """One row as a key; one that can't be read is logged and opens nothing, and harms no other."""
    try:
        return StoredKey(
            id=row[0],
            name=row[1],
            digest=row[2],
            scopes=msgspec.json.decode(row[3], type=frozenset[Scope]),
            endpoints=msgspec.json.decode(row[4], type=frozenset[str]),
            created_at=row[5],
            expires_at=row[6],
        )
    except msgspec.MsgspecError as problem:
        log.error("key unreadable", key=row[0], problem=str(problem))  # noqa: TRY400 - the cause is all there is to tell
        return None


class KeyStore:
    """Reads and writes the table `keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[StoredKey]:
        """Every key, oldest first."""
        rows = await self._database.rows(
            "SELECT id, name, digest, scopes, endpoints, created_at, expires_at FROM keys ORDER BY created_at, id"
        )
        return [key for key in map(_decoded, rows) if key is not None]

    async def add(self, key: StoredKey) -> None:
        """Write a new key. Raises IntegrityError if its id or digest is there already."""
        async with self._database.transaction() as write:
            await write.execute(
                "INSERT INTO keys (id, name, digest, scopes, endpoints, created_at, expires_at) VALUES (?,?,?,?,?,?,?)",
                (
                    key.id,
                    key.name,
                    key.digest,
                    msgspec.json.encode(sorted(key.scopes)).decode(),
                    msgspec.json.encode(sorted(key.endpoints)).decode(),
                    key.created_at,
                    key.expires_at,
                ),
            )

    async def remove(self, key_id: str) -> bool:
        """Delete a key; whether there was one."""
        async with self._database.transaction() as write:
            return await write.execute("DELETE FROM keys WHERE id = ?", (key_id,)) > 0
