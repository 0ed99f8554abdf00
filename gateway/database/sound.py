"""Whether a database file is whole: SQLite's own check, on a connection that only reads."""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from gateway.database.migrate import scripts

CHECK_SECONDS = 600.0
"""Bound of one pass over a file: some hundred GB."""
STEPS = 200_000
"""SQLite's instructions between two looks at the clock, some milliseconds."""
OURS = frozenset({"endpoints", "keys"})
"""Tables that every database of Hostler has had since its first migration."""


class UnsoundError(Exception):
    """The file is no database of Hostler's, is damaged, or newer than this program; the message says which."""


class Sound(NamedTuple):
    """What a whole file holds."""

    schema: int
    """Number of its last migration."""
    endpoints: int
    keys: int


def reading(path: Path, *, still: bool = False) -> contextlib.closing[sqlite3.Connection]:
    """A connection that can't write and never checkpoints; `still`: nobody else has the file open."""
    mode = "mode=ro&immutable=1" if still else "mode=ro"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
    bound(connection)
    return contextlib.closing(connection)


def bound(connection: sqlite3.Connection, seconds: float = CHECK_SECONDS) -> None:
    """Let whatever runs on this connection end with an error after so long."""
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)


def is_sound(path: Path) -> bool:
    """Whether a file that is in use passes SQLite's quick check: every page, but not every index entry."""
    try:
        with reading(path) as connection:
            return [row[0] for row in connection.execute("PRAGMA quick_check(1)")] == ["ok"]
    except sqlite3.Error:
        return False


def examine(path: Path) -> Sound:
    """Check a file that nobody uses, with every index entry. Raises UnsoundError, OSError."""
    if path.stat().st_size == 0:
        raise UnsoundError("it is empty")
    try:
        with reading(path, still=True) as connection:
            return _examine(connection)
    except sqlite3.Error as problem:
        raise UnsoundError(f"it is no whole SQLite database ({problem})") from problem


def _examine(connection: sqlite3.Connection) -> Sound:
    found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(1)")]
    if found != ["ok"]:
        raise UnsoundError(f"its integrity check fails ({found[0].splitlines()[-1] if found else 'no answer'})")
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise UnsoundError("some of its rows refer to rows that are not there")
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not tables >= OURS:
        raise UnsoundError("it is a database, but none of Hostler's")
    [schema] = connection.execute("PRAGMA user_version").fetchone()
    known = len(scripts())
    if schema > known:
        raise UnsoundError(f"it has schema {schema}, this version of Hostler knows {known}: install the newer version")
    [endpoints] = connection.execute("SELECT count(*) FROM endpoints").fetchone()
    [keys] = connection.execute("SELECT count(*) FROM keys").fetchone()
    return Sound(schema, endpoints, keys)
