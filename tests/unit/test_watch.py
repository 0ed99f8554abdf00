"""A database in trouble is told as such, and found well again by trying, on real files."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.database import watch as module
from gateway.database.connection import Database
from gateway.database.trouble import DAMAGED, FULL, HANGS, LOCKED, READ_ONLY, Trouble, trouble_of
from gateway.database.watch import Watch

INSERT = "INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES (?, '{}', 0, 0)"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path)
    await opened.rows("PRAGMA busy_timeout = 20")
    yield opened
    await opened.close()


async def insert(database: Database, name: str) -> None:
    async with database.transaction() as write:
        await write.execute(INSERT, (name * 10_000,))


def seen(watch: Watch) -> Trouble | None:
    """What it says now: a call, since a type checker takes a property for a constant."""
    return watch.trouble


@contextlib.asynccontextmanager
async def full(database: Database) -> AsyncIterator[None]:
    [(pages,)] = await database.rows("PRAGMA page_count")
    await database.rows(f"PRAGMA max_page_count = {pages}")
    yield
    await database.rows("PRAGMA max_page_count = 1000000")


@contextlib.asynccontextmanager
async def read_only(database: Database) -> AsyncIterator[None]:
    await database.rows("PRAGMA query_only = ON")
    yield
    await database.rows("PRAGMA query_only = OFF")


@contextlib.asynccontextmanager
async def locked(database: Database) -> AsyncIterator[None]:
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.close()


@pytest.mark.parametrize(("cause", "told"), [(full, FULL), (read_only, READ_ONLY), (locked, LOCKED)])
async def test_a_write_that_fails_is_told_until_a_write_works(
    database: Database,
    cause: Callable[[Database], contextlib.AbstractAsyncContextManager[None]],
    told: Trouble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOW_MIB", 0)  # the test machine's own disk is no matter
    recovered: list[str] = []
    watch = Watch(database, well=lambda: recovered.append("well"))
    async with cause(database):
        with pytest.raises(sqlite3.Error):
            await insert(database, "a")
        assert seen(watch) == told
    await watch.look()
    assert seen(watch) is None
    assert recovered == ["well"]
    await insert(database, "b")


async def test_damage_is_believed_until_the_file_has_been_read_through(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(module, "CHECK_SHARE", 0)
    monkeypatch.setattr(module, "LOW_MIB", 0)
    await insert(database, "a")
    watch = Watch(database)
    with contextlib.closing(sqlite3.connect(database.path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    good = database.path.read_bytes()
    with database.path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"noise" * 800)
    with pytest.raises(sqlite3.DatabaseError):
        await database.rows("SELECT * FROM endpoints")
    assert seen(watch) == DAMAGED
    await watch.look()
    assert seen(watch) == DAMAGED
    with database.path.open("r+b") as stream:
        stream.write(good)
    await watch.look()
    assert seen(watch) is None
    assert len(await database.rows("SELECT * FROM endpoints")) == 1


async def test_a_bug_of_ours_is_no_trouble_of_the_file(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table") as bug:
        await database.rows("SELECT * FROM nowhere")
    with pytest.raises(sqlite3.IntegrityError) as conflict:  # noqa: PT012 - the second one is the point
        await insert(database, "a")
        await insert(database, "a")
    assert trouble_of(bug.value) is trouble_of(conflict.value) is trouble_of(ValueError()) is None
    assert database.trouble is None


async def test_a_disk_that_is_nearly_full_or_hangs_is_told_before_anything_fails(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(database)
    monkeypatch.setattr(module, "LOW_MIB", 1 << 40)
    await watch.look()
    assert seen(watch) is not None
    assert "MiB are free on its disk" in str(seen(watch))
    monkeypatch.setattr(module, "LOW_MIB", 0)
    await watch.look()
    assert seen(watch) is None
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.0)
    async with database.transaction():
        await asyncio.sleep(0)
        assert seen(watch) == HANGS
    assert seen(watch) is None
