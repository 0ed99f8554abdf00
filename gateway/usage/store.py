"""Use in the database: single requests for a while, their sums by day for good."""

from collections.abc import Sequence
from itertools import chain

from gateway.database.connection import Database
from gateway.types import Used
from gateway.usage.types import By, Group, Sum, WantedDays, added_up

MOST = 2**62
"""Of any sum: whatever an engine tells, a batch can be written."""
COLUMNS = ", ".join(Used._fields)
SUMS = ", ".join(Sum._fields)
ROWS = 50
"""Requests in one statement, with fewer values in all than the 999 that any SQLite takes.

For each statement Python's lock is given up and asked for again: one for each request costs the threads twice as much.
"""
ROW = f"({', '.join('?' for _ in Used._fields)})"
INSERT = f"INSERT INTO usage_requests ({COLUMNS}) VALUES {ROW}"  # noqa: S608 - our own names
INSERT_ROWS = INSERT + f", {ROW}" * (ROWS - 1)
ADD = (
    f"INSERT INTO usage_days (day, key_id, endpoint, {SUMS}) "  # noqa: S608 - our own names
    f"VALUES ({', '.join('?' for _ in (*Group._fields, *Sum._fields))}) "
    "ON CONFLICT (day, key_id, endpoint) DO UPDATE SET "
    + ", ".join(f"{name} = min({name} + excluded.{name}, {MOST})" for name in Sum._fields)
)
GROUPED = {By.KEY: "key_id", By.ENDPOINT: "endpoint", By.DAY: "day"}


class UsageStore:
    """Reads and writes the tables `usage_requests` and `usage_days`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, records: Sequence[Used]) -> None:
        """Write requests and add them to their sums, all or none. Raises DatabaseError."""
        sums = added_up(list(records))
        many = len(records) // ROWS * ROWS
        together = [tuple(chain.from_iterable(records[at : at + ROWS])) for at in range(0, many, ROWS)]
        async with self._database.transaction() as write:
            await write.execute_many(INSERT_ROWS, together)
            await write.execute_many(INSERT, records[many:])
            await write.execute_many(ADD, [(*group, *total) for group, total in sums.items()])

    async def sums(self, by: By, wanted: WantedDays) -> dict[str, Sum]:
        """Sums by key, endpoint or day."""
        # not sum(), which fails where it overflows
        added = ", ".join(f"total({name})" for name in Sum._fields)
        column = GROUPED[by]
        rows = await self._database.rows(
            f"SELECT {column}, {added} FROM usage_days "  # noqa: S608 - our own names
            "WHERE day BETWEEN :first AND :last "
            "AND (:key IS NULL OR key_id = :key) AND (:endpoint IS NULL OR endpoint = :endpoint) "
            f"GROUP BY {column}",
            wanted._asdict(),
        )
        return {str(name): Sum(*map(int, numbers)) for name, *numbers in rows}

    async def prune(self, before: float, most: int) -> int:
        """Delete at most so many requests that ended before this time (Unix seconds); how many there were."""
        async with self._database.transaction() as write:
            return await write.execute(
                "DELETE FROM usage_requests WHERE rowid IN "
                "(SELECT rowid FROM usage_requests WHERE at < ? ORDER BY at LIMIT ?)",
                (before, most),
            )
