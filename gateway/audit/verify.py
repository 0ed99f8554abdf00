"""The chain of a database file, recomputed: for `python -m gateway audit verify`, also beside a running gateway.

The file is opened read-only: such a connection never checkpoints, and an engine's or a gateway's work never waits.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from gateway.database.chain import COLUMNS, START, Record, link

BUSY_SECONDS = 5.0
TRIGGERS = frozenset({"audit_never_changes", "audit_never_forgets", "audit_has_no_gap"})


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    records: int
    """How many records are whole, from the first one on."""
    head: bytes
    """The hash of the last of them."""
    broken: int | None = None
    """The number of the first record that is not what it was; None: all are."""
    problem: str = ""
    """A sentence on what is wrong; empty where nothing is."""


def verify(path: Path, anchor: tuple[int, bytes] | None = None) -> Verdict:
    """Check every record of a database file, and that the record `anchor` (number, hash) has this hash still.

    Raises sqlite3.Error where the file can't be read, or has no audit trail.
    """
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    try:
        connection.execute("BEGIN")  # one instant of the file, whatever is written meanwhile
        verdict = check(connection.execute(f"SELECT {COLUMNS} FROM audit ORDER BY seq"), anchor)  # noqa: S608 - our own names
        if verdict.problem:
            return verdict
        return _beyond(verdict, connection)
    finally:
        connection.close()


def check(rows: Iterable[tuple[Any, ...]], anchor: tuple[int, bytes] | None = None) -> Verdict:
    """Recompute the chain over rows in their order."""
    previous, count = START, 0
    for row in rows:
        record = Record(*row)
        if record.seq != count + 1:
            return _broken(count, previous, count + 1, f"record {count + 1} is missing: record {record.seq} follows")
        if link(previous, record) != record.hash:
            return _broken(
                count, previous, record.seq, f"record {record.seq} is not what was written, or the one before it was"
            )
        if anchor is not None and anchor[0] == record.seq and anchor[1] != record.hash:
            return _broken(count, previous, record.seq, f"record {record.seq} has another hash than you have kept")
        previous, count = record.hash, record.seq
    if anchor is not None and anchor[0] > count:
        return _broken(count, previous, count + 1, f"record {count + 1} is missing: you have kept one of {anchor[0]}")
    return Verdict(records=count, head=previous)


def _beyond(verdict: Verdict, connection: sqlite3.Connection) -> Verdict:
    """What a whole chain can't tell: records cut off at its end, and whether the table is still guarded."""
    ever = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'audit'").fetchone()[0]
    if ever > verdict.records:
        missing = verdict.records + 1
        return _broken(verdict.records, verdict.head, missing, f"record {missing} is missing: there were {ever}")
    found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'audit'")
    gone = sorted(TRIGGERS - {name for (name,) in found})
    if gone:
        problem = f"the table's trigger {gone[0]} is gone: records could be changed"
        return msgspec.structs.replace(verdict, problem=problem)
    return verdict


def _broken(records: int, head: bytes, number: int, problem: str) -> Verdict:
    return Verdict(records=records, head=head, broken=number, problem=problem)
