"""Backups and restores of real files: whole or not there, and never one by mistake."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.database import backup as module
from gateway.database.backup import NoRoomError, back_up, digest_of
from gateway.database.claim import FolderInUseError, claimed
from gateway.database.connection import FILE_NAME, Database
from gateway.database.migrate import scripts
from gateway.database.restore import restore
from gateway.database.sound import UnsoundError, examine
from gateway.errors import Conflict
from gateway.machine.backups import Backups
from tests.support.processes import REPOSITORY


async def make(folder: Path) -> None:
    """Make a database, or bring it up to date."""
    await (await Database.open(folder)).close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A database with an endpoint, closed."""
    asyncio.run(make(tmp_path / "data"))
    file = tmp_path / "data" / FILE_NAME
    add(file, "old")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def names(file: Path) -> list[str]:
    connection = sqlite3.connect(file)
    try:
        return [row[0] for row in connection.execute("SELECT name FROM endpoints ORDER BY name")]
    finally:
        connection.close()


def visible(folder: Path) -> list[str]:
    """What lies in a folder, but for what SQLite keeps beside a database."""
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(("-wal", "-shm")))


def add(file: Path, name: str) -> None:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES (?, '{}', 0, 0)", (name,))
    connection.close()


def test_a_backup_is_one_private_file_that_says_what_it_holds(source: Path, folder: Path) -> None:
    made = back_up(source, folder, keep=3)
    file = folder / made.name
    assert [entry.name for entry in folder.iterdir()] == [made.name]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (made.bytes, made.sha256) == (file.stat().st_size, digest_of(file))
    assert (made.schema, made.endpoints, made.keys, made.kept) == (len(scripts()), 1, 0, 1)
    assert names(file) == ["old"]


def test_a_backup_has_every_commit_of_a_database_in_use_and_nothing_uncommitted(source: Path, folder: Path) -> None:
    writer = sqlite3.connect(source, isolation_level=None)
    writer.execute("INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES ('new', '{}', 0, 0)")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES ('half', '{}', 0, 0)")
    made = back_up(source, folder, keep=3)
    writer.execute("COMMIT")
    writer.close()
    assert names(folder / made.name) == ["new", "old"]


def test_the_oldest_backups_go_and_nothing_else_in_the_folder(source: Path, folder: Path) -> None:
    folder.mkdir()
    strange = folder / "hostler-mine.db"
    strange.touch()
    killed = folder / ".hostler-20200101T000000.000000Z.db.part"
    killed.touch()
    from_the_future = folder / "hostler-29991231T000000.000000Z.db"
    from_the_future.touch()
    made = [back_up(source, folder, keep=2) for _ in range(3)]
    assert [one.kept for one in made] == [2, 2, 2]
    assert {entry.name for entry in folder.iterdir()} == {strange.name, from_the_future.name, made[-1].name}


def test_what_cannot_be_copied_whole_leaves_no_file(source: Path, folder: Path) -> None:
    with source.open("r+b") as stream:
        stream.seek(4096)
        stream.write(os.urandom(4096))
    with pytest.raises((sqlite3.DatabaseError, UnsoundError)):
        back_up(source, folder, keep=3)
    assert list(folder.iterdir()) == []


def test_a_backup_is_not_what_fills_the_disk(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(NoRoomError, match="MiB are free on the disk of HOSTLER_BACKUPS"):
        back_up(source, folder, keep=3)
    assert list(folder.iterdir()) == []


# restore


def test_a_restore_brings_the_backup_and_keeps_the_old_database(source: Path, folder: Path) -> None:
    made = back_up(source, folder, keep=3)
    add(source, "later")
    with claimed(source.parent):
        done = restore(folder / made.name, source.parent)
    assert (done.schema, done.endpoints, done.keys) == (len(scripts()), 1, 0)
    assert names(source) == ["old"]
    assert done.aside is not None
    assert names(source.parent / done.aside) == ["later", "old"]
    assert visible(source.parent) == [done.aside, FILE_NAME]


def test_a_restore_into_an_empty_folder_makes_the_database(source: Path, folder: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    with claimed(fresh):
        done = restore(folder / back_up(source, folder, keep=3).name, fresh)
    assert done.aside is None
    assert [entry.name for entry in fresh.iterdir()] == [FILE_NAME]
    asyncio.run(make(fresh))
    assert names(fresh / FILE_NAME) == ["old"]


def test_commits_that_only_the_old_log_holds_go_aside_with_it_and_never_into_the_backup(
    source: Path, folder: Path
) -> None:
    made = back_up(source, folder, keep=3)
    copies = {}
    writer = sqlite3.connect(source, isolation_level=None)
    writer.execute("INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES ('logged', '{}', 0, 0)")
    for suffix in ("", "-wal"):  # as a process that is killed leaves them
        copies[suffix] = source.with_name(source.name + suffix).read_bytes()
    writer.close()
    for suffix, data in copies.items():
        source.with_name(source.name + suffix).write_bytes(data)
    assert len(copies["-wal"]) > 0
    with claimed(source.parent):
        done = restore(folder / made.name, source.parent)
    assert names(source) == ["old"]
    assert done.aside is not None
    assert names(source.parent / done.aside) == ["logged", "old"]


def test_a_damaged_database_is_replaced_and_kept_as_it_is(source: Path, folder: Path) -> None:
    made = back_up(source, folder, keep=3)
    rubbish = b"no database at all, but long enough to be one" * 200
    source.write_bytes(rubbish)
    with claimed(source.parent):
        done = restore(folder / made.name, source.parent)
    assert names(source) == ["old"]
    assert done.aside is not None
    assert (source.parent / done.aside).read_bytes() == rubbish


def damaged(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(4096)
        stream.write(os.urandom(4096))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4096)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def of_the_future(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 999")
    connection.close()


def foreign(file: Path) -> None:
    file.unlink()
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE songs (name)")
    connection.close()


def raw_copy(file: Path) -> None:
    file.with_name(file.name + "-wal").write_bytes(b"frames")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (damaged, "whole|integrity"),
        (cut, "whole|integrity"),
        (emptied, "empty"),
        (of_the_future, "schema 999, this version of Hostler knows"),
        (foreign, "none of Hostler's"),
        (raw_copy, "in use, or a copy of one"),
    ],
)
def test_what_is_no_good_backup_is_refused_and_changes_nothing(
    source: Path, folder: Path, spoil: object, word: str
) -> None:
    file = folder / back_up(source, folder, keep=3).name
    assert callable(spoil)
    spoil(file)
    before = source.read_bytes()
    with claimed(source.parent), pytest.raises(UnsoundError, match=word):
        restore(file, source.parent)
    assert source.read_bytes() == before
    assert visible(source.parent) == [FILE_NAME]


def test_a_disk_without_room_leaves_the_old_database(source: Path, folder: Path) -> None:
    file = folder / back_up(source, folder, keep=3).name
    command = f"ulimit -f 16; exec {sys.executable} -m gateway.database restore {file} {source.parent}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False, cwd=REPOSITORY
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "File too large" in done.stderr
    assert names(source) == ["old"]
    assert visible(source.parent) == [FILE_NAME]


async def test_one_backup_is_made_at_a_time_and_the_next_one_after_it(source: Path, folder: Path) -> None:
    database = await Database.open(source.parent)
    backups = Backups(database, folder, 5)
    try:
        first = asyncio.create_task(backups.make())
        await asyncio.sleep(0)
        with pytest.raises(Conflict, match="being made already"):
            await backups.make()
        assert (await first).kept == 1
        assert (await backups.make()).kept == 2
    finally:
        await database.close()


# who may use a folder


def test_a_folder_is_for_one_at_a_time_and_free_when_that_one_ends(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(FolderInUseError, match="in use by a gateway"), claimed(tmp_path):
        pass
    with claimed(tmp_path):
        pass


def test_a_file_that_is_no_database_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    file.write_bytes(b"no database at all, but long enough to be one" * 200)
    with pytest.raises(UnsoundError, match="no whole SQLite database"):
        examine(file)
