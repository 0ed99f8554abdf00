"""The one connection to the database file: WAL, synchronous=FULL, every write in BEGIN IMMEDIATE.

One process and one connection take away SQLite's busy errors and the condition of its WAL-reset bug (fixed in 3.51.3):
no second connection ever checkpoints.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiosqlite
import structlog

from gateway.actor import Actor, acting
from gateway.database.chain import COLUMNS, START, Change, Record, linked
from gateway.database.migrate import migrate, scripts
from gateway.database.trouble import DAMAGED, Trouble, trouble_of

log = structlog.get_logger(__name__)

FILE_NAME = "hostler.db"
RECORD = f"INSERT INTO audit ({COLUMNS}) VALUES ({', '.join('?' for _ in Record._fields)})"  # noqa: S608 - our own names


class Database:
    """An open database. Every method is bounded by SQLite itself: there is nobody to wait for."""

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        self._connection = connection
        self._writing = asyncio.Lock()
        self.path = path
        self.trouble: Trouble | None = None
        """Why its last use failed; only `watch` takes it away again."""
        self.writing_since: float | None = None
        """When the write that is under way began (monotonic clock)."""
        self.unreadable: dict[tuple[str, str], str] = {}
        """Rows that a store could make nothing of, by table and name, and why; whoever deletes one takes it out."""

    @classmethod
    async def open(cls, folder: Path) -> "Database":
        """Open `folder/hostler.db`, make it if there is none, and bring its schema up to date.

        Raises OSError where the folder can't be made, `MigrationError` or sqlite3.DatabaseError where the file
        can't be used.
        """
        folder.mkdir(mode=0o770, parents=True, exist_ok=True)  # noqa: ASYNC240 - once, before anything is served
        path = folder / FILE_NAME
        connection = await aiosqlite.connect(path, isolation_level=None)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                await connection.execute(f"PRAGMA {pragma}")
            await migrate(connection, scripts())
        except BaseException:
            # an aiosqlite connection left open keeps the whole process from ending
            await connection.close()
            raise
        return cls(connection, path)

    async def rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        try:
            return [tuple(row) for row in await self._connection.execute_fetchall(sql, parameters)]
        except sqlite3.Error as problem:
            self.note(problem)
            raise

    def note(self, problem: BaseException) -> None:
        """Remember what an error says of the file; damage outlasts whatever comes later."""
        found = trouble_of(problem)
        if found is not None and not (self.trouble is not None and self.trouble.is_damage):
            self.trouble = found

    async def discard(self, table: Literal["endpoints", "keys"], column: str, name: str) -> bool:
        """Delete a row that can't be read; whether there was one."""
        if (table, name) not in self.unreadable:
            return False
        async with self.transaction() as write:
            await write.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))  # noqa: S608 - our own names
            await write.audit(Change(f"{table[:-1]}.discard", name, None, None))
        del self.unreadable[table, name]
        return True

    def suspect(self) -> None:
        """Take the file for damaged until it has been read through."""
        self.trouble = DAMAGED

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["Transaction"]:
        """A write transaction; it is rolled back if the block raises. Nobody else writes meanwhile."""
        async with self._writing:
            self.writing_since = time.monotonic()
            try:
                await self._connection.execute("BEGIN IMMEDIATE")
                writing = Transaction(self._connection)
                yield writing
                await self._connection.execute("COMMIT")
            except BaseException as problem:
                self.note(problem)
                # also where BEGIN was cancelled on its way or COMMIT failed: a transaction left open would be the last
                with contextlib.suppress(sqlite3.DatabaseError):  # there was none to roll back
                    await self._connection.execute("ROLLBACK")
                raise
            finally:
                self.writing_since = None
        writing.tell()

    async def ping(self) -> None:
        """Raise sqlite3.Error if the database can't be read."""
        await self.rows("SELECT count(*) FROM sqlite_schema")

    async def try_to_write(self) -> None:
        """Write one page that changes nothing. Raises sqlite3.Error if that can't be done."""
        [(version,)] = await self.rows("PRAGMA user_version")
        async with self.transaction() as write:
            await write.execute(f"PRAGMA user_version = {version}")

    async def forget_pages(self) -> None:
        """Read from the file again what was read before: it may have been mended since."""
        await self.rows("PRAGMA shrink_memory")

    async def close(self) -> None:
        """Finish and close. Must be called, or the process lives on."""
        await self._connection.close()


class Transaction:
    """What may be done inside `Database.transaction`."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._recorded: list[Record] = []

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> int:
        """Run one statement; the number of rows it changed. Raises sqlite3.IntegrityError."""
        cursor = await self._connection.execute(sql, tuple(parameters))
        return cursor.rowcount

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement with each of these rows. Raises sqlite3.IntegrityError."""
        await self._connection.executemany(sql, rows)

    async def audit(self, change: Change, actor: Actor | None = None) -> None:
        """Record a change in the audit trail, by whoever is acting unless said otherwise: both are written or none."""
        last = list(await self._connection.execute_fetchall("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1"))
        seq, previous = last[0] if last else (0, START)
        record = linked(seq + 1, previous, time.time(), actor or acting.get(), change)
        await self._connection.execute(RECORD, record)
        self._recorded.append(record)

    def tell(self) -> None:
        """Say in the log what was recorded: the copy of the chain that whoever writes the file can't change."""
        for record in self._recorded:
            log.info(
                "audit",
                seq=record.seq,
                who=record.who,
                action=record.action,
                target=record.target,
                request_id=record.request_id,
                hash=record.hash.hex(),
            )


IntegrityError = sqlite3.IntegrityError
DatabaseError = sqlite3.Error
