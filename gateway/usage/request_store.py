"""Single requests out of the database, the newest first, in pages that keep it from nobody else for long."""

from typing import NamedTuple

from gateway.database.connection import Database
from gateway.types import Used

COLUMNS = ", ".join(Used._fields)
LOOK = 5_000
"""Rows that one statement looks at: some milliseconds for everybody else who wants the database."""
LOOKS = 100
"""Statements for one page; what is found by then is the page, and the next one goes on from there."""
WINDOW = (
    "SELECT rowid AS number, * FROM usage_requests WHERE at >= :first AND (at, rowid) < (:at, :number) "
    "ORDER BY at DESC, rowid DESC LIMIT :look"
)
FOUND = (
    f"SELECT number, {COLUMNS} FROM ({WINDOW}) "  # noqa: S608 - our own names
    "WHERE (:key IS NULL OR key_id = :key) AND (:endpoint IS NULL OR endpoint = :endpoint) "
    "ORDER BY at DESC, number DESC LIMIT :most"
)
END = f"SELECT at, number, count(*) OVER () FROM ({WINDOW}) ORDER BY at, number LIMIT 1"  # noqa: S608 - our own names


class Place(NamedTuple):
    """Where a page begins: before this request. Requests are in the order in which they ended."""

    at: float
    """Unix seconds."""
    number: int = 0
    """Its row."""


class Wanted(NamedTuple):
    """Which requests."""

    first: float
    """Unix seconds; those that ended before are not wanted."""
    before: Place
    key: str | None = None
    endpoint: str | None = None


class RequestStore:
    """Reads the table `usage_requests`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, wanted: Wanted, most: int) -> tuple[list[Used], Place | None]:
        """At most so many requests, the newest first, and where the next page begins; None: that was the last."""
        found: list[Used] = []
        place = wanted.before
        for _ in range(LOOKS):
            words = {
                "first": wanted.first,
                **place._asdict(),
                "look": LOOK,
                "key": wanted.key,
                "endpoint": wanted.endpoint,
                "most": most - len(found),
            }
            rows = await self._database.rows(FOUND, words)
            found += [Used(*row[1:]) for row in rows]
            if len(found) == most:
                return found, Place(found[-1].at, rows[-1][0])
            end = await self._database.rows(END, words)
            if not end or end[0][2] < LOOK:
                return found, None
            place = Place(*end[0][:2])
        return found, place
