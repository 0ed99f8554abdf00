"""What keys have spent, on its way to a real database file."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.access.budget import Account, Spent
from gateway.access.credentials import digest
from gateway.access.ledger import Ledger
from gateway.access.store import BudgetStore, KeyStore
from gateway.access.types import KeySpec, StoredKey
from gateway.database.connection import Database, DatabaseError
from gateway.types import Budget, Limits, Period

NOON = 1_000_000.0
BUDGET = Budget(tokens=100, period=Period.DAY)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path)
    for key_id in ("one", "two"):
        spec = KeySpec(name=key_id, limits=Limits(concurrency=2), budget=BUDGET)
        await KeyStore(opened).add(StoredKey(id=key_id, spec=spec, digest=digest(key_id.encode()), created_at=1.0))
    yield opened
    await opened.close()


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(BudgetStore(database), lambda: NOON)


def spending(key_id: str, tokens: int) -> Account:
    account = Account(key_id, BUDGET, NOON)
    account.settle(0, tokens, NOON, 0, 10 * tokens)
    return account


async def reloaded(database: Database) -> Ledger:
    again = Ledger(BudgetStore(database))
    await again.load()
    return again


async def test_limits_and_budgets_of_keys_are_kept(database: Database) -> None:
    specs = [key.spec for key in await KeyStore(database).all()]
    assert [(spec.limits, spec.budget) for spec in specs] == [(Limits(concurrency=2), BUDGET)] * 2


async def test_what_was_spent_is_there_after_a_restart(ledger: Ledger, database: Database) -> None:
    first = spending("one", 5)
    for account in (first, spending("two", 7)):
        ledger.note(account)
    await ledger.write()
    first.settle(0, 3, NOON, 0, 2**70)
    ledger.note(first)
    await ledger.write()
    again = await reloaded(database)
    day = int(NOON // 86_400)
    assert [again.spent(key) for key in ("one", "two", "three")] == [
        Spent(Period.DAY, day, 8, 2**62),
        Spent(Period.DAY, day, 7, 70),
        None,
    ]


async def test_what_cannot_be_written_is_written_later(ledger: Ledger, database: Database) -> None:
    ledger.note(spending("one", 5))
    await database.rows("PRAGMA query_only=ON")
    with pytest.raises(DatabaseError):
        await ledger.write()
    ledger.note(spending("two", 7))
    await database.rows("PRAGMA query_only=OFF")
    await ledger.write()
    again = await reloaded(database)
    assert [again.spent(key) is not None for key in ("one", "two")] == [True, True]


async def test_a_row_that_cannot_be_read_harms_no_other(ledger: Ledger, database: Database) -> None:
    for key_id in ("one", "two"):
        ledger.note(spending(key_id, 5))
    await ledger.write()
    async with database.transaction() as write:
        await write.execute("UPDATE budgets SET period = 'week' WHERE key_id = 'one'")
    again = await reloaded(database)
    assert [again.spent(key) is not None for key in ("one", "two")] == [False, True]


async def test_of_a_key_that_is_gone_nothing_is_written(ledger: Ledger, database: Database) -> None:
    ledger.note(spending("one", 5))
    await ledger.write()
    keys = {key.id: key for key in await KeyStore(database).all()}
    await KeyStore(database).remove(keys["one"])
    ledger.forget("one")
    ledger.note(spending("one", 9))  # a request that ended after its key
    await ledger.write()
    assert (await reloaded(database)).spent("one") is None
