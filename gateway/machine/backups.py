"""`POST /api/backup`: a backup while everything goes on, one at a time."""

import asyncio
import sqlite3
from pathlib import Path

import structlog
from litestar import Controller, post

from gateway.database.backup import Backup, NoRoomError, back_up
from gateway.database.connection import Database
from gateway.database.sound import UnsoundError
from gateway.database.trouble import trouble_of
from gateway.errors import BackupFailed, Conflict
from gateway.http import needs
from gateway.types import Scope

log = structlog.get_logger(__name__)

RETRY_SECONDS = 60.0


class Backups:
    """Makes backups in a thread; the event loop and the one writer never wait for it."""

    def __init__(self, database: Database, folder: Path, keep: int) -> None:
        self._database = database
        self._folder = folder
        self._keep = keep
        self._task: asyncio.Task[Backup] | None = None

    async def make(self) -> Backup:
        """Make one. It goes on if the caller leaves. Raises Conflict while one is being made, BackupFailed."""
        if self._task is not None and not self._task.done():
            raise Conflict("A backup is being made already: ask again when it has ended")
        self._task = asyncio.create_task(self._make(), name="backup")
        return await asyncio.shield(self._task)

    async def _make(self) -> Backup:
        try:
            made = await asyncio.to_thread(back_up, self._database.path, self._folder, self._keep)
        except (sqlite3.Error, UnsoundError, NoRoomError, OSError) as problem:
            log.error("no backup", problem=str(problem))  # noqa: TRY400 - the cause is all there is to tell
            raise self._failure(problem) from problem
        log.info("backup made", name=made.name, bytes=made.bytes, seconds=made.seconds, sha256=made.sha256)
        return made

    def _failure(self, problem: Exception) -> BackupFailed:
        """What is told: neither a path nor what SQLite says of rows. Damage shows here first, and is remembered."""
        if isinstance(problem, NoRoomError):
            reason = f"{problem}: free space there, or lower HOSTLER_BACKUPS_KEPT"
        elif isinstance(problem, UnsoundError):
            self._database.suspect()
            reason = "the copy does not pass its check, so the database itself is likely damaged: see the log"
        elif isinstance(problem, OSError):
            reason = f"the folder HOSTLER_BACKUPS can't be written ({problem.strerror})"
        else:
            trouble = trouble_of(problem)
            if trouble is not None and trouble.is_damage:
                self._database.note(problem)
                reason = trouble.sentence()
            else:
                reason = f"{problem}: look at the disks of HOSTLER_DATA and HOSTLER_BACKUPS"
        return BackupFailed(f"No backup was made: {reason}. Those that are there stay", retry_after=RETRY_SECONDS)


class BackupRoutes(Controller):
    """Backups, for admins."""

    guards = [needs(Scope.ADMIN)]

    @post("/api/backup")
    async def make(self, backups: Backups) -> Backup:
        """Make a backup; the answer comes when it is on the disk and checked."""
        return await backups.make()
