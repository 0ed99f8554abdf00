"""The audit trail in the database: read in pages, and written where nothing else is written with it."""

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.actor import Actor
from gateway.database.chain import COLUMNS, Change, Record
from gateway.database.connection import Database


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which records; None: whichever."""

    before: int | None = None
    """With a smaller number than this."""
    who: str | None = None
    action: str | None = None
    """`endpoint.create`, or `endpoint` for all that is done to them."""
    target: str | None = None
    request_id: str | None = None
    since: float | None = None
    """Unix seconds."""
    until: float | None = None


RULES = {
    "before": "seq < :before",
    "who": "who = :who",
    "action": "(action = :action OR action GLOB :action || '.*')",
    "target": "target = :target",
    "request_id": "request_id = :request_id",
    "since": "at >= :since",
    "until": "at < :until",
}
"""What each field of `Wanted` asks of a row."""


class AuditStore:
    """Reads the table `audit`; adds to it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(
        self, action: str, target: str, *, before: dict[str, Any] | None = None, after: dict[str, Any] | None = None
    ) -> None:
        """Record what whoever is acting is about to do outside the database. Raises DatabaseError: then don't."""
        async with self._database.transaction() as write:
            await write.audit(Change(action, target, before, after))

    async def add(self, changes: Iterable[tuple[Actor, Change]]) -> None:
        """Record what others did, all or none. Raises DatabaseError."""
        async with self._database.transaction() as write:
            for actor, change in changes:
                await write.audit(change, actor)

    async def page(self, wanted: Wanted, most: int) -> list[Record]:
        """At most so many records, the newest first."""
        given = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
        where = " AND ".join(RULES[name] for name in given)
        rows = await self._database.rows(
            f"SELECT {COLUMNS} FROM audit {'WHERE ' + where if where else ''} "  # noqa: S608 - our own words
            "ORDER BY seq DESC LIMIT :most",
            {**given, "most": most},
        )
        return [Record(*row) for row in rows]

    async def every(self, action: str) -> list[Record]:
        """All records of one action, the oldest first."""
        rows = await self._database.rows(f"SELECT {COLUMNS} FROM audit WHERE action = ? ORDER BY seq", (action,))  # noqa: S608 - our own names
        return [Record(*row) for row in rows]
