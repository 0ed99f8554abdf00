"""What was taken of limits within the last minute, kept for the gateway's next life: no restart begins a new minute.

A small file beside the database, written every few seconds while there is something to write, and at the end. It is in
no transaction, no backup, and not waited for until it is on the disk: what it says is of no use after a minute.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from gateway.access.gate import Gate
from gateway.access.quota import Quota
from gateway.access.window import Taken

log = structlog.get_logger(__name__)

FILE = "minutes.json"
WRITE_SECONDS = 2.0
"""How much of the minute a `kill -9` may cost at the most, but for the write itself."""


class Kept(msgspec.Struct, frozen=True):
    """What the file holds: windows of keys by their ids and of endpoints by their names, as they were at a time."""

    at: float
    """Unix seconds."""
    keys: dict[str, Taken]
    endpoints: dict[str, Taken]


class Minutes:
    """Writes the windows of a gate, and puts them back."""

    def __init__(self, folder: Path, gate: Gate, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / FILE
        self._gate = gate
        self._clock = clock
        self._is_empty = False
        """Whether the file says that nothing was taken."""
        self._fails = False

    async def recall(self) -> None:
        """Put back what the last gateway has let in within this minute, once the limits are known."""
        try:
            kept = msgspec.json.decode(await asyncio.to_thread(self._path.read_bytes), type=Kept)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
            log.warning("limits of a minute begin anew: what was kept of it can't be read", problem=str(problem))
            return
        passed = max(0.0, self._clock() - kept.at)  # a clock that went back makes the minute longer, never shorter
        steady = self._gate.now().steady
        for quotas, taken in zip(self._gate.by_name, (kept.keys, kept.endpoints), strict=True):
            for name, one in taken.items():
                if name in quotas:
                    quotas[name].put_back(one, passed, steady)

    async def run(self) -> None:
        """Write, every few seconds; for ever."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write what is taken. A disk that takes none costs no more than a new minute at the next start."""
        keys, endpoints = [await self._taken(quotas) for quotas in self._gate.by_name]
        if self._is_empty and not keys and not endpoints:
            return
        text = msgspec.json.encode(Kept(self._clock(), keys, endpoints))
        try:
            await asyncio.to_thread(self._replace, text)
        except OSError as problem:
            if not self._fails:
                log.warning("what is taken of limits can't be kept for a restart", problem=str(problem))
            self._fails = True
        else:
            self._is_empty, self._fails = not keys and not endpoints, False

    async def _taken(self, quotas: Mapping[str, Quota]) -> dict[str, Taken]:
        found: dict[str, Taken] = {}
        for name, quota in list(quotas.items()):
            taken = quota.taken(self._gate.now().steady)
            if any(taken):
                found[name] = taken
                await asyncio.sleep(0)  # a full window is some thousand numbers: others may go on between two
        return found

    def _replace(self, text: bytes) -> None:
        # not as the manager replaces files: waiting for the disk every two seconds would be for nothing
        new = self._path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text)
        new.replace(self._path)
