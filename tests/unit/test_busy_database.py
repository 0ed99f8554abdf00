"""The one writer under a crowd, with backups beside it: nobody is told "locked", and nobody waits for a backup."""

import asyncio
import random
import secrets
import sqlite3
import time
from pathlib import Path

from gateway.database.backup import Backup, back_up
from gateway.database.connection import Database
from tests.support.battery import Tell, hold, milliseconds, size

CLIENTS = 50
SECONDS = size(1, 60)
WRITE_SECONDS = 0.02
MEGABYTES = size(4, 100)
BACKUP_SECONDS = 1.0
LONGEST_WRITE_SECONDS = 0.1
PAUSE_SECONDS = 0.25
"""Between two writes of a client, on average: fifty make two hundred a second, far more than Hostler ever does."""
INSERT = "INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES (?, ?, 0, 0)"
BODY = '{"filled": "' + "x" * 4000 + '"}'


class Crowd:
    """Clients that write and read until they are told to stop."""

    def __init__(self, database: Database, pause: float) -> None:
        self._database, self._pause = database, pause
        self._going = True
        self.writes: list[float] = []
        """Seconds of each, from asking to committed."""

    async def client(self) -> None:
        """Write, read it back, rest."""
        while self._going:
            name, began = secrets.token_hex(8), time.monotonic()
            async with self._database.transaction() as write:
                await write.execute(INSERT, (name, "{}"))
            self.writes.append(time.monotonic() - began)
            assert await self._database.rows("SELECT name FROM endpoints WHERE name = ?", (name,)) == [(name,)]
            await asyncio.sleep(random.random() * 2 * self._pause)  # noqa: S311 - no secret

    def stop(self) -> None:
        """No more."""
        self._going = False

    def share(self, part: float) -> float:
        """The time that this share of the writes took at most."""
        return sorted(self.writes)[int(len(self.writes) * part)]


async def backups(database: Database, folder: Path, until: float) -> list[Backup]:
    """One after the other, with a rest in between, as `POST /api/backup` makes them."""
    made: list[Backup] = []
    while time.monotonic() < until or not made:
        made.append(await asyncio.to_thread(back_up, database.path, folder, 2))
        await asyncio.sleep(min(5.0, max(0.0, until - time.monotonic())))
    return made


async def test_of_fifty_clients_that_write_during_backups_none_is_told_that_the_database_is_locked(
    tmp_path: Path, record_property: Tell
) -> None:
    database = await Database.open(tmp_path)
    try:
        crowd = Crowd(database, PAUSE_SECONDS)
        clients = [asyncio.create_task(crowd.client()) for _ in range(CLIENTS)]
        made = await backups(database, tmp_path / "backups", time.monotonic() + SECONDS)
        crowd.stop()
        await asyncio.gather(*clients)  # raises what any of them was told
        assert await database.rows("SELECT count(*) FROM endpoints") == [(len(crowd.writes),)]
    finally:
        await database.close()
    record_property(f"{CLIENTS} clients, {SECONDS} s", f"{len(crowd.writes):,} writes, {len(made)} backups, 0 locked")
    record_property(
        "99th percentile and slowest write", f"{milliseconds(crowd.share(0.99))} and {milliseconds(max(crowd.writes))}"
    )
    hold(crowd.share(0.99), WRITE_SECONDS, "99 of 100 writes")


async def test_no_writer_waits_for_the_backup_of_a_large_database(tmp_path: Path, record_property: Tell) -> None:
    database = await Database.open(tmp_path)
    try:
        async with database.transaction() as write:
            rows = ((f"filled-{number}", BODY) for number in range(MEGABYTES * 250))
            await write.execute_many(INSERT, rows)
        crowd = Crowd(database, 0)
        client = asyncio.create_task(crowd.client())
        made = await asyncio.to_thread(back_up, database.path, tmp_path / "backups", 2)
        crowd.stop()
        await client
    finally:
        await database.close()
    record_property(f"backup of {made.bytes / 1e6:.0f} MB, checked and hashed", f"{made.seconds:.2f} s")
    record_property("slowest write beside it", f"{milliseconds(max(crowd.writes))} of {len(crowd.writes):,}")
    copy = sqlite3.connect(tmp_path / "backups" / made.name)
    assert copy.execute("SELECT count(*) FROM endpoints WHERE spec = ?", (BODY,)).fetchone() == (MEGABYTES * 250,)
    copy.close()
    hold(made.seconds, BACKUP_SECONDS, "the backup")
    hold(max(crowd.writes), LONGEST_WRITE_SECONDS, "the longest write beside it")
