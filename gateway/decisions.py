"""The decision log: what the planner was told and what it decided, whenever that is something new.

JSON lines in the data folder, in two files of bounded size: `decisions.jsonl`, and the one before it. `gateway.replay`
feeds them to the planner again. Nothing of requests is in them but their numbers.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import structlog

from gateway.chronicle import sameness
from gateway.scheduling.types import Plan, Situation

log = structlog.get_logger(__name__)

FILE_NAME = "decisions.jsonl"
BEFORE_NAME = "decisions.1.jsonl"
FILE_LIMIT = 8 * 1024 * 1024
"""Bytes of one file; some hundred decisions on a busy machine, thousands on a quiet one."""
PIECE = 256 * 1024
"""Bytes read at once, about."""
WAITING_LIMIT = 100
"""Entries that wait for the disk; more are dropped."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    at: float
    situation: Situation
    plan: Plan


class DecisionLog:
    """Notes plans; a task of its own writes them, so that a slow disk holds up nobody."""

    def __init__(self, folder: Path, limit: int = FILE_LIMIT) -> None:
        self._path = folder / FILE_NAME
        self._before = folder / BEFORE_NAME
        self._limit = limit
        self._last: object = None
        self._waiting: deque[bytes] = deque(maxlen=WAITING_LIMIT)
        self._arrived = asyncio.Event()
        self._failing = False

    @property
    def unwritten(self) -> int:
        """How many entries wait for the disk."""
        return len(self._waiting)

    def note(self, situation: Situation, plan: Plan) -> None:
        """Keep a plan that is another one than the last, but for its numbers."""
        key = (plan.desired, plan.draining, plan.residencies, frozenset(map(sameness, plan.decisions)))
        if key == self._last:
            return
        self._last = key
        self._waiting.append(msgspec.json.encode(Entry(at=situation.now, situation=situation, plan=plan)) + b"\n")
        self._arrived.set()

    async def run(self) -> None:
        """Write for ever; a disk that takes nothing is said once."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            lines = list(self._waiting)
            self._waiting.clear()
            try:
                await asyncio.to_thread(self._write, lines)
            except OSError as problem:
                if not self._failing:
                    log.warning("decisions cannot be written", problem=str(problem))
                self._failing = True
            else:
                self._failing = False

    async def close(self) -> None:
        """Write what is left."""
        if self._waiting:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._write, list(self._waiting))

    async def read(self) -> AsyncIterator[bytes]:
        """Both files, the older one first, in pieces of whole lines."""
        for path in (self._before, self._path):
            try:
                file = await asyncio.to_thread(path.open, "rb")
            except FileNotFoundError:
                continue
            with file:
                while lines := await asyncio.to_thread(file.readlines, PIECE):
                    yield b"".join(lines)

    def _write(self, lines: list[bytes]) -> None:
        if self._path.exists() and self._path.stat().st_size + sum(map(len, lines)) > self._limit:
            self._path.replace(self._before)
        with self._path.open("ab") as file:
            file.writelines(lines)
