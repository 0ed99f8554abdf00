"""What SQLite's errors mean for whoever runs this machine. Pure.

An error of the file or its disk passes when its cause goes, and is nobody's bug; every other one is ours.
"""

import sqlite3
from typing import NamedTuple

PRIMARY = 0xFF
"""Bits of an extended error code that say its kind (https://www.sqlite.org/rescode.html)."""


class Trouble(NamedTuple):
    """Why the database can't be used."""

    reason: str
    """What is wrong, as the end of "The database: …"; no path and no value."""
    hint: str
    """What to do about it."""
    is_damage: bool = False
    """Whether the file itself is broken: then a write that works proves nothing."""

    def sentence(self) -> str:
        """Reason and hint as sentences."""
        return f"The database can't be used: {self.reason}. {self.hint[:1].upper()}{self.hint[1:]}"


FULL = Trouble("its disk is full", "free space on the disk of HOSTLER_DATA")
DAMAGED = Trouble(
    "its file is damaged",
    "stop the gateway and put a backup back with scripts/restore (docs/operate.md, Backup)",
    is_damage=True,
)
LOCKED = Trouble("another program keeps it locked", "end that program: only the gateway may write to hostler.db")
UNREADABLE = Trouble(
    "its file can't be read or written (disk I/O error)",
    "look for a disk error, a quota, or a file system that became read-only (dmesg)",
)
READ_ONLY = Trouble(
    "its file is read-only", "let the gateway's user write to the folder HOSTLER_DATA and to hostler.db in it"
)
NO_MEMORY = Trouble("memory did not suffice", "free memory on this machine")
HANGS = Trouble("a write takes very long", "look at the disk of HOSTLER_DATA: it hangs, or is overloaded")

MEANINGS = {
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
    sqlite3.SQLITE_BUSY: LOCKED,
    sqlite3.SQLITE_LOCKED: LOCKED,
    sqlite3.SQLITE_PROTOCOL: LOCKED,
    sqlite3.SQLITE_IOERR: UNREADABLE,
    sqlite3.SQLITE_CANTOPEN: READ_ONLY,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_PERM: READ_ONLY,
    sqlite3.SQLITE_NOMEM: NO_MEMORY,
}


def trouble_of(error: BaseException) -> Trouble | None:
    """What an error says of the file and its disk; None where it is none of SQLite's, or a bug of ours."""
    code = getattr(error, "sqlite_errorcode", None) if isinstance(error, sqlite3.Error) else None
    return MEANINGS.get(code & PRIMARY) if code is not None else None


def low_on_space(free_mib: int) -> Trouble:
    """Writes still work, but not for long."""
    return Trouble(f"only {free_mib} MiB are free on its disk", FULL.hint)
