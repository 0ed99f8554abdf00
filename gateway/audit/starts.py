"""The gateway's starts, and the settings each runs with."""

from typing import Any

import msgspec
import structlog

import gateway
from gateway.actor import GATEWAY
from gateway.audit.store import AuditStore
from gateway.database.chain import Change
from gateway.database.connection import DatabaseError
from gateway.settings import Settings

log = structlog.get_logger(__name__)

SECRET = frozenset({"admin_key"})
SETTINGS = "settings.change"


async def started(audit: AuditStore, settings: Settings) -> None:
    """Record a start, and its settings if they are not those of the last one.

    A database that takes no writes does not keep the gateway from serving: then the log alone has it.
    """
    now = {name: str(value) for name, value in msgspec.structs.asdict(settings).items() if name not in SECRET}
    try:
        before = await last_settings(audit)
        changes = [(GATEWAY, Change("gateway.start", "gateway", None, {"version": gateway.__version__}))]
        if before != now:
            changes.append((GATEWAY, Change(SETTINGS, "gateway", before, now)))
        await audit.add(changes)
    except DatabaseError as problem:
        log.error("the start cannot be recorded in the audit trail", problem=str(problem))  # noqa: TRY400 - the cause is all there is to tell


async def last_settings(audit: AuditStore) -> dict[str, Any] | None:
    """The settings as the trail has them; None if it has none."""
    found: dict[str, Any] | None = None
    for record in await audit.every(SETTINGS):
        found = found or {}
        for name in msgspec.json.decode(record.before or "{}"):
            found.pop(name, None)
        found |= msgspec.json.decode(record.after or "{}")
    return found
