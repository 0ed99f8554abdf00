"""Databases as earlier versions of Hostler left them: migrations up to a number, and rows in every table of theirs."""

import sqlite3
from pathlib import Path
from typing import Any

from gateway.database.connection import FILE_NAME
from gateway.database.migrate import scripts

ROWS = 3
DIGEST = bytes(range(32))
SAMPLES: dict[str, dict[str, str]] = {
    "endpoints": {"spec": '{"name": "old-%d", "model": "local/old"}', "name": "old-%d"},
    "keys": {"id": "key-%d", "name": "old", "scopes": '["inference"]', "endpoints": '["*"]'},
    "audit": {},
}
"""What some columns of a table hold in place of a made-up value; %d is the row's number.

The tables named here must take their rows; another one whose rules don't stays empty."""

Rows = dict[str, list[dict[str, Any]]]
"""Rows by table, as column names to values."""


def old_database(folder: Path, schema: int) -> Rows:
    """Make `folder/hostler.db` with this many migrations and rows that were written between them; what it holds."""
    folder.mkdir(parents=True)
    connection = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        for number, sql in enumerate(scripts()[:schema], start=1):
            connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")
            _fill(connection)
        return rows_of(connection)
    finally:
        connection.close()


def rows_of(connection: sqlite3.Connection) -> Rows:
    """Everything in every table."""
    found: Rows = {}
    for table in _tables(connection):
        cursor = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - our own names
        names = [column[0] for column in cursor.description]
        found[table] = [dict(zip(names, row, strict=True)) for row in cursor]
    return found


def schema_of(connection: sqlite3.Connection) -> tuple[int, dict[str, str]]:
    """Its number, and the SQL of everything in it without what is only layout."""
    [(number,)] = connection.execute("PRAGMA user_version")
    made = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return number, {name: " ".join(sql.split()) for name, sql in made}


def _tables(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
    )
    return [row[0] for row in found]


def _fill(connection: sqlite3.Connection) -> None:
    """Rows for each table that has none yet; one whose rules take no made-up rows stays empty."""
    for table in _tables(connection):
        if connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():  # noqa: S608 - our own names
            continue
        columns = [(row[1], row[2]) for row in connection.execute(f"PRAGMA table_info({table})")]
        for number in range(ROWS):
            values = [_value(table, name, kind, number) for name, kind in columns]
            marks = ", ".join("?" for _ in columns)
            try:
                connection.execute(f"INSERT INTO {table} VALUES ({marks})", values)  # noqa: S608 - our own names
            except sqlite3.IntegrityError:
                assert table not in SAMPLES, f"the sample of {table} does not fit its schema any more"


def _value(table: str, column: str, kind: str, number: int) -> Any:
    sample = SAMPLES.get(table, {}).get(column)
    if sample is not None:
        return sample.replace("%d", str(number))
    # a text that is JSON as well, since many columns must be
    return {"INTEGER": number + 1, "REAL": 1.5 + number, "BLOB": bytes([number, *DIGEST[1:]])}.get(kind, f'"{number}"')
