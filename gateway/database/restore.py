"""Putting a backup in the place of the database: the old one or the new one, whole, and never anything between."""

import contextlib
import os
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.database.backup import digest_of, flush
from gateway.database.connection import FILE_NAME
from gateway.database.sound import UnsoundError, examine

NEW = ".hostler.db.restoring"
WAL, INDEX = "-wal", "-shm"
"""What SQLite keeps beside a database: commits that are not yet in the file itself, and an index of them."""


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore has done."""

    schema: int
    endpoints: int
    keys: int
    aside: str | None
    """What the old database is called now, in the same folder; None where there was none."""


def restore(file: Path, folder: Path) -> Restored:
    """Put a backup into a data folder that the caller has claimed. Raises UnsoundError, OSError.

    Whatever happens, the folder's database is the old one or the new one: the new one is copied, checked and on the
    disk before one rename makes it the database.
    """
    log = _beside(file, WAL)
    if log.exists() and log.stat().st_size:
        raise UnsoundError(
            f"beside it lies {log.name}: it is no backup but a database in use, or a copy of one, and is not "
            "whole by itself"
        )
    examine(file)
    new = folder / NEW
    try:
        _copy(file, new)
        sound = examine(new)  # the copy, as it will be used
        aside = _keep_aside(folder)
        new.replace(folder / FILE_NAME)
    finally:
        new.unlink(missing_ok=True)  # it is the database by now, or is of no use
    flush(folder)
    return Restored(aside=aside, **sound._asdict())


def _copy(file: Path, new: Path) -> None:
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o660)
    with file.open("rb") as source, os.fdopen(descriptor, "wb") as target:
        shutil.copyfileobj(source, target, 1024 * 1024)
    if digest_of(new) != digest_of(file):
        raise UnsoundError("it changed while it was copied, or the disk does not keep what is written")
    flush(new)


def _keep_aside(folder: Path) -> str | None:
    """A second name for the old database, with all its commits; then what lies beside it is not needed any more."""
    old = folder / FILE_NAME
    if not old.exists():
        _drop_beside(old)
        return None
    fold(old)
    aside = folder / f"hostler-before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z.db"
    # a write-ahead log that is left belongs to a file too damaged to be opened: both are kept as they are
    wal = _beside(old, WAL)
    if wal.exists():
        shutil.copy2(wal, _beside(aside, WAL))
        flush(_beside(aside, WAL))
    os.link(old, aside)
    flush(folder)
    _drop_beside(old)
    return aside.name


def fold(database: Path) -> None:
    """Bring what lies beside a database into the file itself; one that can't be opened stays as it is."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection,
    ):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _drop_beside(database: Path) -> None:
    """A log left behind would be played into whatever takes the database's name."""
    for suffix in (WAL, INDEX):
        _beside(database, suffix).unlink(missing_ok=True)


def _beside(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)
