"""SQLite as Hostler uses it: migrations, transactions, and what a crash leaves."""

import asyncio
import functools
import random
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiosqlite
import pytest

from gateway.database.connection import FILE_NAME, Database, DatabaseError
from gateway.database.migrate import MigrationError, migrate, scripts
from tests.support.battery import Tell, size
from tests.support.processes import RunningProcess, running
from tests.support.waiting import wait_until

INSERT = "INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES (?, ?, 0, 0)"
WRITER = """
import asyncio, sys, time
from pathlib import Path
from gateway.database.connection import Database

INSERT = "INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES (?, ?, 0, 0)"

async def main():
    database = await Database.open(Path(sys.argv[1]))
    number = len(await database.rows("SELECT name FROM endpoints"))
    while True:
        async with database.transaction() as write:
            for part in ("a", "b"):
                await write.execute(INSERT, (f"{number}-{part}", "{}"))
        print("committed", number, flush=True)
        number += 1

asyncio.run(main())
"""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path)
    yield opened
    await opened.close()


async def names(database: Database) -> list[str]:
    return [row[0] for row in await database.rows("SELECT name FROM endpoints ORDER BY name")]


async def insert(database: Database, name: str) -> None:
    async with database.transaction() as write:
        await write.execute(INSERT, (name, "{}"))


def versions(folder: Path) -> tuple[int, set[str]]:
    """The schema's number and tables, read by another program."""
    connection = sqlite3.connect(folder / FILE_NAME)
    try:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        return connection.execute("PRAGMA user_version").fetchone()[0], tables
    finally:
        connection.close()


# migrations


async def test_a_new_file_gets_the_newest_schema_and_opening_it_again_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        await (await Database.open(tmp_path)).close()
        tables = {
            "audit",
            "budgets",
            "capture_keys",
            "captures",
            "endpoints",
            "gpu_days",
            "keys",
            "load_times",
            "measured_memory",
            "sleep_failures",
            "sqlite_sequence",
            "usage_days",
            "usage_requests",
        }
        assert versions(tmp_path) == (len(scripts()), tables)


async def test_the_file_is_written_ahead_and_to_the_disk(database: Database) -> None:
    assert await database.rows("PRAGMA journal_mode") == [("wal",)]
    assert await database.rows("PRAGMA synchronous") == [(2,)]
    assert await database.rows("PRAGMA foreign_keys") == [(1,)]


def test_migrations_are_numbered_without_a_gap(tmp_path: Path) -> None:
    assert len(scripts()) >= 1
    for name in ("0001_first.sql", "0003_third.sql"):
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(MigrationError, match=r"not numbered 1, 2, 3, … but \[1, 3\]"):
        scripts(tmp_path)
    (tmp_path / "0002_second.sql").write_text("SELECT 2;")
    assert scripts(tmp_path) == ["SELECT 1;", "SELECT 2;", "SELECT 1;"]


async def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    await (await Database.open(tmp_path)).close()
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(MigrationError, match="schema 999, this program knows"):
        await Database.open(tmp_path)
    assert versions(tmp_path)[0] == 999


async def test_a_migration_that_fails_leaves_the_schema_and_the_rows_of_before(tmp_path: Path) -> None:
    opened = await Database.open(tmp_path)
    await insert(opened, "kept")
    await opened.close()
    before = versions(tmp_path)
    bad = "CREATE TABLE novel (x); DELETE FROM endpoints; INSERT INTO nowhere VALUES (1);"
    async with aiosqlite.connect(tmp_path / FILE_NAME, isolation_level=None) as connection:
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            await migrate(connection, [*scripts(), bad])
        assert not connection.in_transaction
    assert versions(tmp_path) == before
    opened = await Database.open(tmp_path)
    assert await names(opened) == ["kept"]
    await opened.close()


async def test_what_is_no_database_is_refused_and_the_process_can_end(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is no database, but long enough to be looked at\n" * 100)
    with pytest.raises(DatabaseError):
        await Database.open(tmp_path)


# transactions


async def test_an_error_in_the_block_takes_everything_back(database: Database) -> None:
    async def half_done() -> None:
        async with database.transaction() as write:
            await write.execute(INSERT, ("a", "{}"))
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        await half_done()
    assert await names(database) == []
    await insert(database, "b")
    assert await names(database) == ["b"]


async def test_a_broken_constraint_takes_everything_back(database: Database) -> None:
    async with database.transaction() as write:
        assert await write.execute(INSERT, ("a", "{}")) == 1
    with pytest.raises(sqlite3.IntegrityError):  # noqa: PT012 - the block is the point
        async with database.transaction() as write:
            await write.execute("DELETE FROM endpoints")
            await write.execute(
                "INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES ('b', 'not json', 0, 0)"
            )
    assert await names(database) == ["a"]


async def test_writers_wait_for_each_other(database: Database) -> None:
    await asyncio.gather(*(insert(database, f"{number:02}") for number in range(20)))
    assert len(await names(database)) == 20


async def test_a_writer_cancelled_at_any_point_leaves_nothing_open(database: Database) -> None:
    for turns in range(12):
        task = asyncio.create_task(insert(database, f"maybe-{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await insert(database, f"sure-{turns}")
    assert {f"sure-{turns}" for turns in range(12)} <= set(await names(database))


async def test_a_transaction_that_cannot_begin_does_not_spoil_the_next_one(database: Database) -> None:
    other = sqlite3.connect(database.path, isolation_level=None)
    await database.rows("PRAGMA busy_timeout = 50")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        await insert(database, "a")
    other.execute("ROLLBACK")
    other.close()
    await insert(database, "b")
    assert await names(database) == ["b"]


async def test_ping_tells_a_database_that_cannot_be_read(tmp_path: Path) -> None:
    opened = await Database.open(tmp_path)
    await opened.ping()
    await opened.close()
    with pytest.raises((DatabaseError, ValueError)):
        await opened.ping()


# crashes

KILLS = size(4, 60)


def told(writer: RunningProcess) -> set[str]:
    """The numbers of the transactions that it said were committed."""
    return {line.split()[1] for line in writer.output.splitlines(keepends=True) if line.endswith("\n")}


def has_told(writer: RunningProcess, number: int) -> bool:
    return len(told(writer)) >= number


def test_kill_9_of_a_writer_loses_no_committed_row_and_keeps_no_half_of_one(
    tmp_path: Path, record_property: Tell
) -> None:
    committed: set[str] = set()
    for _ in range(KILLS):
        with running([sys.executable, "-c", WRITER, str(tmp_path)]) as writer:
            wait_until(functools.partial(has_told, writer, random.randint(1, 20)), seconds=30)  # noqa: S311 - no secret
            writer.kill()
            committed |= told(writer)
        connection = sqlite3.connect(tmp_path / FILE_NAME)
        there = {row[0] for row in connection.execute("SELECT name FROM endpoints")}
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        assert {f"{number}-{part}" for number in committed for part in "ab"} <= there
        numbers = {name.split("-")[0] for name in there}
        assert there == {f"{number}-{part}" for number in numbers for part in "ab"}
    record_property("kills", KILLS)
    record_property("lost", f"0 of {len(committed):,} transactions, integrity ok")
