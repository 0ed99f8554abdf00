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
        rules = {
            "seq < ?": wanted.before,
            "who = ?": wanted.who,
            "(action = ?1 OR action GLOB ?1 || '.*')": wanted.action,
            "target = ?": wanted.target,
            "request_id = ?": wanted.request_id,
            "at >= ?": wanted.since,
            "at < ?": wanted.until,
        }
        given = {rule: value for rule, value in rules.items() if value is not None}
        where = " AND ".join(
            rule.replace("?1", f"?{number}") if "?1" in rule else rule.replace("?", f"?{number}")
            for number, rule in enumerate(given, start=1)
        )
        rows = await self._database.rows(
            f"SELECT {COLUMNS} FROM audit {'WHERE ' + where if where else ''} "  # noqa: S608 - our own words
            f"ORDER BY seq DESC LIMIT ?{len(given) + 1}",
            (*given.values(), most),
        )
        return [Record(*row) for row in rows]

    async def every(self, action: str) -> list[Record]:
        """All records of one action, the oldest first."""
        rows = await self._database.rows(f"SELECT {COLUMNS} FROM audit WHERE action = ? ORDER BY seq", (action,))  # noqa: S608 - our own names
        return [Record(*row) for row in rows]
