"""Databases of every earlier version become today's, also where the process is killed in the middle."""

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.access.store import KeyStore
from gateway.database.connection import FILE_NAME, Database
from gateway.database.migrate import scripts
from gateway.endpoints.store import EndpointStore
from tests.support.old_databases import ROWS, Rows, old_database, rows_of, schema_of
from tests.support.processes import REPOSITORY

NEWEST = len(scripts())
SECONDS = 60

KILLED = """
import asyncio, os, shutil, signal, sys
from pathlib import Path
import aiosqlite
from gateway.database.connection import FILE_NAME
from gateway.database.migrate import migrate, scripts

source, target, known = Path(sys.argv[1]), Path(sys.argv[2]), scripts()[: int(sys.argv[3])]

async def killed_at(number, folder):
    statements = 0
    def seen(sql):
        nonlocal statements
        statements += 1
        if statements == number:
            os.kill(os.getpid(), signal.SIGKILL)
    connection = await aiosqlite.connect(folder / FILE_NAME, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        await connection.execute(f"PRAGMA {pragma}")
    await connection.set_trace_callback(seen)
    await migrate(connection, known)
    os._exit(0)

number = 0
while True:
    number += 1
    folder = target / f"{number:04}"
    shutil.copytree(source, folder)
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(killed_at(number, folder))
        finally:
            os._exit(3)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    if code == 0:
        break
print(number)
"""
"""Migrates copies of a database, each in a process that kills itself as its next statement begins."""


async def _upgraded(folder: Path) -> dict[str, Any]:
    """What today's stores read out of a database of any age."""
    database = await Database.open(folder)
    try:
        endpoints, bad = await EndpointStore(database).all()
        keys = await KeyStore(database).all()
        assert bad == {}
        return {"endpoints": len(endpoints), "keys": len(keys)}
    finally:
        await database.close()


def upgraded(folder: Path) -> dict[str, Any]:
    return asyncio.run(_upgraded(folder))


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, dict[str, str]]]:
    """Every schema there has been, by number; the first is that of an empty file."""
    folder = tmp_path_factory.mktemp("references")
    found: list[tuple[int, dict[str, str]]] = []
    for number in range(NEWEST + 1):
        old_database(folder / str(number), number)
        with contextlib.closing(sqlite3.connect(folder / str(number) / FILE_NAME)) as connection:
            found.append(schema_of(connection))
    return found


def check(folder: Path, allowed: list[tuple[int, dict[str, str]]], before: Rows) -> int:
    """The schema is one of these to the letter, the file is whole, and every row is there; the schema's number."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        schema, now = schema_of(connection), rows_of(connection)
    assert schema in allowed
    for table, rows in before.items():
        assert table in now, f"migration lost the table {table}"
        for row, kept in zip(rows, now[table], strict=True):
            assert {name: kept[name] for name in row if name in kept} == {
                name: value for name, value in row.items() if name in kept
            }
    return schema[0]


@pytest.mark.parametrize("schema", range(1, NEWEST + 1))
def test_a_database_of_every_earlier_version_becomes_todays_with_all_its_rows(
    schema: int, tmp_path: Path, references: list[tuple[int, dict[str, str]]]
) -> None:
    before = old_database(tmp_path / "data", schema)
    assert {table for table, rows in before.items() if rows} >= {"endpoints", "keys"}
    assert upgraded(tmp_path / "data") == {"endpoints": ROWS, "keys": ROWS}
    assert check(tmp_path / "data", references[-1:], before) == NEWEST


@pytest.mark.parametrize(("schema", "last"), [(0, 1), (1, NEWEST)])
def test_a_migration_killed_at_any_statement_leaves_a_version_whole_and_the_next_start_ends_it(
    schema: int, last: int, tmp_path: Path, references: list[tuple[int, dict[str, str]]]
) -> None:
    before = old_database(tmp_path / "data", schema)
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "data"), str(tmp_path / "killed"), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "killed").iterdir())
    assert len(folders) == int(done.stdout) > 4 * (last - schema), "BEGIN, something, user_version, COMMIT each"
    seen = set()
    for folder in folders:
        copy = folder.with_name(f"{folder.name}-seen")  # a look is a use: SQLite ends what was left open
        shutil.copytree(folder, copy)
        seen.add(check(copy, references[schema : last + 1], before))
        upgraded(folder)
        assert check(folder, references[-1:], before) == NEWEST
    assert seen == set(range(schema, last + 1))
