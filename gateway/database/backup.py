"""A backup: one file, whole and checked, made beside the running gateway without holding it up.

`VACUUM INTO` reads on a connection of its own, which only reads and so never checkpoints: the one writer goes on
meanwhile. Nothing is called a backup before it has passed SQLite's integrity check and is on the disk.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.database.sound import bound, examine, reading

NAME = re.compile(r"hostler-\d{8}T\d{6}\.\d{6}Z\.db")
PART = re.compile(r"\.hostler-\d{8}T\d{6}\.\d{6}Z\.db\.part")
"""What a backup is called while it is made."""
BACKUP_SECONDS = 600.0
RESERVE_BYTES = 32 * 1024 * 1024
"""What a backup leaves free: it must not be the backup that fills the database's disk."""
CHUNK_BYTES = 1024 * 1024


class NoRoomError(Exception):
    """The folder's disk has no room for another backup; the message has the numbers."""


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was made; what `POST /api/backup` answers."""

    name: str
    """Its file's name in HOSTLER_BACKUPS, with the time (UTC) it was begun."""
    bytes: int
    sha256: str
    seconds: float
    schema: int
    """Number of its last migration."""
    endpoints: int
    keys: int
    kept: int
    """How many backups the folder holds now."""


def back_up(source: Path, folder: Path, keep: int) -> Backup:
    """Make a backup of the database `source` in a folder and delete the oldest beyond `keep`.

    Raises sqlite3.Error, UnsoundError, NoRoomError, OSError; then the folder is as it was.
    """
    began = time.monotonic()
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    _sweep(folder)
    _require_room(source, folder)
    name = f"hostler-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z.db"
    part = folder / f".{name}.part"
    try:
        # an empty file is what VACUUM INTO takes, and so nobody else may ever read it
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with reading(source) as connection:
            bound(connection, BACKUP_SECONDS)
            connection.execute("VACUUM INTO ?", (str(part),))
        sound = examine(part)
        digest = digest_of(part)
        flush(part)
        part.rename(folder / name)
    finally:
        part.unlink(missing_ok=True)  # it has another name by now, or is of no use
    flush(folder)
    return Backup(
        name=name,
        bytes=(folder / name).stat().st_size,
        sha256=digest,
        kept=_rotate(folder, name, keep),
        seconds=round(time.monotonic() - began, 3),
        **sound._asdict(),
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Bring a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_room(source: Path, folder: Path) -> None:
    with contextlib.suppress(sqlite3.Error), reading(source) as connection:
        # with what still lies in the write-ahead log, which the file's size does not show
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()
        needed, free = pages * size, shutil.disk_usage(folder).free
        if free < needed + RESERVE_BYTES:
            raise NoRoomError(
                f"it needs {_mib(needed)} MiB and leaves {_mib(RESERVE_BYTES)} MiB free, and {_mib(free)} MiB are "
                "free on the disk of HOSTLER_BACKUPS"
            )


def _mib(number: int) -> int:
    return -(-number // (1024 * 1024))


def _sweep(folder: Path) -> None:
    """Remove what a backup that was killed has left."""
    for entry in folder.iterdir():
        if PART.fullmatch(entry.name):
            entry.unlink(missing_ok=True)


def _rotate(folder: Path, made: str, keep: int) -> int:
    """Delete the oldest backups beyond `keep`, never the one just made, whatever the clock says; how many are left."""
    others = sorted(entry for entry in folder.iterdir() if NAME.fullmatch(entry.name) and entry.name != made)
    surplus = len(others) - max(keep - 1, 0)
    for entry in others[: max(surplus, 0)]:
        entry.unlink(missing_ok=True)
    return len(others) + 1 - max(surplus, 0)
