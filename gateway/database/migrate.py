"""Migrations: numbered SQL files, applied in order, each in one transaction; `PRAGMA user_version` remembers."""

import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable

import aiosqlite

FOLDER = resources.files("gateway.database.migrations")
NAME = re.compile(r"(\d{4})_\w+\.sql")


class MigrationError(Exception):
    """The file is newer than this program, or the numbers of the migrations have a gap."""


def scripts(folder: Traversable = FOLDER) -> list[str]:
    """The SQL of every migration, the first one first. Raises MigrationError on a gap in the numbers."""
    found = sorted((item.name, item.read_text("utf-8")) for item in folder.iterdir() if NAME.fullmatch(item.name))
    numbers = [int(name[:4]) for name, _ in found]
    if numbers != list(range(1, len(found) + 1)):
        raise MigrationError(f"the migrations are not numbered 1, 2, 3, … but {numbers}")
    return [sql for _, sql in found]


async def migrate(connection: aiosqlite.Connection, pending: Sequence[str]) -> None:
    """Bring the schema up to date. A crash in the middle leaves the old schema whole.

    Raises MigrationError if a newer version of the program has used the file before.
    """
    rows = list(await connection.execute_fetchall("PRAGMA user_version"))
    version = int(rows[0][0])
    if version > len(pending):
        raise MigrationError(
            f"the database has schema {version}, this program knows {len(pending)}: "
            "start the newer version again, or restore a backup made before the upgrade"
        )
    for number, sql in enumerate(pending[version:], start=version + 1):
        try:
            await connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                await connection.execute("ROLLBACK")
            raise
