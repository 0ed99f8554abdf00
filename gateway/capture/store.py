"""Captured requests in the database, and which keys have theirs captured."""

from collections.abc import Sequence

import msgspec

from gateway.database.chain import Change
from gateway.database.connection import Database

astuple = msgspec.structs.astuple
COLUMNS = "at, key_id, request_id, endpoint, path, status, prompt, answer"
INSERT = f"INSERT INTO captures ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - our own names


class Captured(msgspec.Struct, frozen=True):
    """What a key sent and got, redacted: the columns of the table `captures`, in its order."""

    at: float
    """When it ended; Unix seconds."""
    key_id: str
    request_id: str
    endpoint: str
    path: str
    status: int
    prompt: str
    answer: str


class StoredCapture(Captured, frozen=True, kw_only=True):
    """One that is in the database."""

    id: int
    """Later ones have higher ones."""


class CaptureStore:
    """Reads and writes the tables `captures` and `capture_keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keys(self) -> set[str]:
        """Ids of the keys whose requests are captured."""
        return {str(row[0]) for row in await self._database.rows("SELECT key_id FROM capture_keys")}

    async def turn_on(self, key_id: str) -> None:
        """Begin to capture what a key sends; it may be so already."""
        async with self._database.transaction() as write:
            if await write.execute("INSERT OR IGNORE INTO capture_keys (key_id) VALUES (?)", (key_id,)) > 0:
                await write.audit(Change("capture.on", key_id))

    async def turn_off(self, key_id: str) -> int:
        """Capture no more of a key, and delete what there is; how many requests that were."""
        async with self._database.transaction() as write:
            was_on = await write.execute("DELETE FROM capture_keys WHERE key_id = ?", (key_id,)) > 0
            deleted = await write.execute("DELETE FROM captures WHERE key_id = ?", (key_id,))
            if was_on or deleted:
                await write.audit(Change("capture.off", key_id, None, {"deleted": deleted}))
            return deleted

    async def add(self, captured: Sequence[Captured], keys: set[str]) -> None:
        """Write requests, but those of keys whose capture was turned off meanwhile. Raises DatabaseError."""
        async with self._database.transaction() as write:
            await write.execute_many(INSERT, [astuple(one) for one in captured if one.key_id in keys])

    async def page(self, key_id: str | None, before: int | None, most: int) -> list[StoredCapture]:
        """At most so many, the newest first."""
        rows = await self._database.rows(
            f"SELECT id, {COLUMNS} FROM captures WHERE (:key IS NULL OR key_id = :key) "  # noqa: S608 - our own names
            "AND (:before IS NULL OR id < :before) ORDER BY id DESC LIMIT :most",
            {"key": key_id, "before": before, "most": most},
        )
        return [StoredCapture(*row[1:], id=row[0]) for row in rows]

    async def prune(self, before: float, most_characters: int) -> None:
        """Delete what ended before this time, and of the rest the oldest beyond so many characters."""
        async with self._database.transaction() as write:
            await write.execute("DELETE FROM captures WHERE at < ?", (before,))
            await write.execute(
                "DELETE FROM captures WHERE id IN (SELECT id FROM (SELECT id, sum(length(prompt) + length(answer)) "
                "OVER (ORDER BY id DESC) AS total FROM captures) WHERE total > ?)",
                (most_characters,),
            )
