"""`/api/audit`: who changed what, for admins."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar import Controller, Request, get

from gateway.audit.store import AuditStore, Wanted
from gateway.database.chain import Record
from gateway.errors import BadRequest
from gateway.http import needs, number, parameters
from gateway.types import Scope

PAGE, PAGE_LIMIT = 100, 1000
WORDS = ("who", "action", "target", "request_id")
PARAMETERS = ("limit", "before", *WORDS, "from", "to")


Settle = Callable[[], Awaitable[None]]
"""Writes what has gathered and is not written yet."""


class RecordView(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """One record."""

    seq: int
    at: float
    """Unix seconds."""
    who: str
    subject: str
    address: str
    action: str
    target: str
    from_: msgspec.Raw
    to: msgspec.Raw
    request_id: str
    hash: str


class Page(msgspec.Struct, frozen=True):
    """The newest records first."""

    records: list[RecordView]
    next: int | None
    """What `before` has to be for the next page; null: there is none."""


class AuditRoutes(Controller):
    """The trail of all changes."""

    guards = [needs(Scope.ADMIN)]

    @get("/api/audit")
    async def page(self, request: Request[Any, Any, Any], audit: AuditStore, settle: Settle) -> Page:
        """A page of the records that fit."""
        given = parameters(request, PARAMETERS)
        most = min(number(given, "limit") or PAGE, PAGE_LIMIT)
        wanted = Wanted(
            before=number(given, "before"),
            **{name: given[name] for name in WORDS if given.get(name)},
            since=_time(given, "from"),
            until=_time(given, "to"),
        )
        await settle()
        found = await audit.page(wanted, most + 1)
        return Page([view(record) for record in found[:most]], found[most - 1].seq if len(found) > most else None)


def view(record: Record) -> RecordView:
    """A record as it is shown."""
    return RecordView(
        record.seq,
        record.at,
        record.who,
        record.subject,
        record.address,
        record.action,
        record.target,
        msgspec.Raw((record.before or "null").encode()),
        msgspec.Raw((record.after or "null").encode()),
        record.request_id,
        record.hash.hex(),
    )


def _time(given: dict[str, str], name: str) -> float | None:
    """Unix seconds of a day or a time; without a zone it is UTC."""
    text = given.get(name, "")
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest(
            f"{name} takes a day or a time in UTC, such as 2026-11-23 or 2026-11-23T18:00:00, not {text!r}", param=name
        ) from None
