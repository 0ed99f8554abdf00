"""Keys and what they have spent in the database. A key itself is never stored, only its SHA-256."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import structlog

from gateway.access.budget import Spent
from gateway.access.types import KeySpec, StoredKey
from gateway.database.chain import Change
from gateway.database.connection import Database
from gateway.prices import units
from gateway.types import Period

log = structlog.get_logger(__name__)

COLUMNS = (
    "id",
    "name",
    "digest",
    "scopes",
    "endpoints",
    "created_at",
    "expires_at",
    "priority",
    "limits",
    "budget",
    "last_used_at",
    "previous_digest",
    "previous_until",
)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM keys ORDER BY created_at, id"  # noqa: S608 - our own names
INSERT = f"INSERT INTO keys ({', '.join(COLUMNS)}) VALUES ({', '.join('?' for _ in COLUMNS)})"  # noqa: S608 - as above
UPDATE = f"UPDATE keys SET {', '.join(f'{name} = ?' for name in COLUMNS[1:])} WHERE id = ?"  # noqa: S608 - as above

MOST_SPENT = 2**62
"""Billionths of a unit: what an engine that tells nonsense can make of a sum still fits into the database."""

SPEND = (
    "INSERT INTO budgets (key_id, period, number, tokens, cost) SELECT id, ?, ?, ?, ? FROM keys WHERE id = ? "
    "ON CONFLICT (key_id) DO UPDATE "
    "SET period = excluded.period, number = excluded.number, tokens = excluded.tokens, cost = excluded.cost"
)


def _decoded(row: tuple[Any, ...]) -> StoredKey | None:
    """One row as a key; one that can't be read is logged and opens nothing, and harms no other."""
    column = dict(zip(COLUMNS, row, strict=True))
    try:
        spec = {name: column[name] for name in ("name", "expires_at", "priority")}
        objects = ("scopes", "endpoints", "limits", "budget")
        spec |= {name: msgspec.json.decode(column[name]) for name in objects if column[name] is not None}
        own = ("id", "digest", "created_at", "last_used_at", "previous_digest", "previous_until")
        return StoredKey(spec=msgspec.convert(spec, KeySpec), **{name: column[name] for name in own})
    except msgspec.MsgspecError as problem:
        log.error("key unreadable", key=row[0], problem=str(problem))  # noqa: TRY400 - the cause is all there is to tell
        return None


def shown(spec: KeySpec) -> dict[str, Any]:
    """A key as the audit trail has it."""
    fields: dict[str, Any] = msgspec.to_builtins(spec, order="sorted")
    return fields


def _row(key: StoredKey) -> tuple[Any, ...]:
    spec = key.spec
    return (
        key.id,
        spec.name,
        key.digest,
        _json(sorted(spec.scopes)),
        _json(sorted(spec.endpoints)),
        key.created_at,
        spec.expires_at,
        spec.priority,
        _json(spec.limits),
        _json(spec.budget),
        key.last_used_at,
        key.previous_digest,
        key.previous_until,
    )


def _json(value: object) -> str | None:
    return msgspec.json.encode(value).decode() if value is not None else None


class KeyStore:
    """Reads and writes the table `keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[StoredKey]:
        """Every key that can be read, oldest first."""
        found: list[StoredKey] = []
        for row in await self._database.rows(SELECT):
            key = _decoded(row)
            if key is None:
                self._database.unreadable["keys", str(row[0])] = "the log says why"
            else:
                found.append(key)
        return found

    async def discard(self, key_id: str) -> bool:
        """Delete a key that can't be read; whether there was one."""
        return await self._database.discard("keys", "id", key_id)

    async def add(self, key: StoredKey) -> None:
        """Write a new key. Raises IntegrityError if its id or digest is there already."""
        async with self._database.transaction() as write:
            await write.execute(INSERT, _row(key))
            await write.audit(Change("key.create", key.id, None, shown(key.spec)))

    async def replace(self, key: StoredKey, change: Change) -> bool:
        """Write a key anew, and what was changed into the audit trail; whether there was one."""
        async with self._database.transaction() as write:
            found = await write.execute(UPDATE, (*_row(key)[1:], key.id)) > 0
            if found:
                await write.audit(change)
            return found

    async def remove(self, key: StoredKey) -> bool:
        """Delete a key and what it has spent; whether there was one."""
        async with self._database.transaction() as write:
            await write.execute("DELETE FROM budgets WHERE key_id = ?", (key.id,))
            found = await write.execute("DELETE FROM keys WHERE id = ?", (key.id,)) > 0
            if found:
                await write.audit(Change("key.revoke", key.id, shown(key.spec), None))
            return found

    async def mark_used(self, key_ids: Iterable[str], at: float) -> None:
        """Note that these keys were used by then."""
        async with self._database.transaction() as write:
            await write.execute_many(
                "UPDATE keys SET last_used_at = ? WHERE id = ?", [(at, key_id) for key_id in key_ids]
            )


class BudgetStore:
    """Reads and writes the table `budgets`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> dict[str, Spent]:
        """What every key has spent, by its id; a row that can't be read is logged, and its budget begins anew."""
        spent: dict[str, Spent] = {}
        for key_id, period, number, tokens, cost in await self._database.rows(
            "SELECT key_id, period, number, tokens, cost FROM budgets"
        ):
            try:
                spent[key_id] = Spent(Period(period), number, tokens, cost)
            except ValueError:
                log.error("what a key has spent is unreadable", key=key_id, period=period)  # noqa: TRY400 - the cause is all there is to tell
        return spent

    async def write(self, spent: Mapping[str, Spent]) -> None:
        """Write what keys have spent by now, all or none; of a key that is gone nothing. Raises DatabaseError."""
        async with self._database.transaction() as write:
            await write.execute_many(SPEND, [_spend(key_id, one) for key_id, one in spent.items()])

    async def reset(self, key_id: str, before: Spent, after: Spent) -> None:
        """Write that a budget begins anew, and into the audit trail. Raises DatabaseError."""
        async with self._database.transaction() as write:
            await write.execute(SPEND, _spend(key_id, after))
            await write.audit(Change("key.reset_budget", key_id, _told(before), _told(after)))


def _spend(key_id: str, spent: Spent) -> tuple[Any, ...]:
    return spent.period.value, spent.number, spent.tokens, min(spent.cost, MOST_SPENT), key_id


def _told(spent: Spent) -> dict[str, Any]:
    return {"tokens": spent.tokens, "cost": units(spent.cost)}
