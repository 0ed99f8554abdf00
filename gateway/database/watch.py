"""Looks after a database that failed until it is well again, and at its disk's room before it fails."""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from gateway.database.connection import Database
from gateway.database.sound import is_sound
from gateway.database.trouble import HANGS, Trouble, low_on_space

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
LOW_MIB = 16
"""Free space below which readiness says so."""
SLOW_SECONDS = 10.0
"""A write that takes longer: a disk that hangs."""
CHECK_SECONDS = 3.0
CHECK_SHARE = 20
"""A damaged file is checked again after this many times as long as the last check took, or CHECK_SECONDS."""
MIB = 1024 * 1024


class Watch:
    """What readiness says of the database; `well` is called when it has recovered."""

    def __init__(self, database: Database, well: Callable[[], None] = lambda: None) -> None:
        self._database = database
        self._well = well
        self._low: Trouble | None = None
        self._check_at = 0.0

    @property
    def trouble(self) -> Trouble | None:
        """What is wrong now."""
        since = self._database.writing_since
        hangs = HANGS if since is not None and time.monotonic() - since > SLOW_SECONDS else None
        return self._database.trouble or hangs or self._low

    async def run(self) -> None:
        """Look, for ever."""
        told: Trouble | None = None
        while True:
            await self.look()
            if self.trouble != told:
                told = self.trouble
                if told is not None:
                    log.error("database in trouble", reason=told.reason, hint=told.hint)
                else:
                    log.info("database well again")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Ask the disk for its room, and a database in trouble whether it still is."""
        self._low = await asyncio.to_thread(_room, self._database.path)
        trouble = self._database.trouble
        if trouble is None:
            return
        if trouble.is_damage:
            recovered = await self._is_mended()
        else:
            recovered = await self._takes_writes()
        if recovered:
            self._database.trouble = None
            self._well()

    async def _takes_writes(self) -> bool:
        try:
            await self._database.try_to_write()
        except sqlite3.Error:
            return False
        return True

    async def _is_mended(self) -> bool:
        """Read the whole file now and then, on a connection of its own."""
        began = time.monotonic()
        if began < self._check_at:
            return False
        fine = await asyncio.to_thread(is_sound, self._database.path)
        took = time.monotonic() - began
        self._check_at = began + took + max(CHECK_SECONDS, CHECK_SHARE * took)
        if fine:
            with contextlib.suppress(sqlite3.Error):
                await self._database.forget_pages()
        return fine


def _room(path: Path) -> Trouble | None:
    """Whether the disk is nearly full, for an ordinary user."""
    try:
        facts = os.statvfs(path.parent)
    except OSError:
        return None  # the database's own error will say more
    free = facts.f_bavail * facts.f_frsize // MIB
    return low_on_space(free) if free < LOW_MIB else None
