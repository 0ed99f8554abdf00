"""How long the workers of each endpoint took to load, kept in SQLite: what a gateway that restarts tells who waits."""

import asyncio
import time
from collections.abc import Callable, Iterable

from gateway.database.connection import Database
from gateway.database.saving import save_whenever


class LoadTimes:
    """The table `load_times`, with the last time of each endpoint."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._unsaved: dict[str, float] = {}
        self._wake = asyncio.Event()

    async def load(self, endpoints: Iterable[str]) -> dict[str, float]:
        """Seconds by endpoint, of those that exist; what is kept of others is dropped."""
        rows = await self._database.rows("SELECT endpoint, seconds FROM load_times")
        known, existing = {str(name): float(seconds) for name, seconds in rows}, set(endpoints)
        async with self._database.transaction() as write:
            for name in known.keys() - existing:
                await write.execute("DELETE FROM load_times WHERE endpoint = ?", (name,))
        return {name: seconds for name, seconds in known.items() if name in existing}

    def note(self, endpoint: str, seconds: float) -> None:
        """A worker of it has loaded; written soon (`run`)."""
        self._unsaved[endpoint] = seconds
        self._wake.set()

    async def run(self) -> None:
        """Write what is new, until cancelled."""
        await save_whenever(self._wake, self.save, "load time not saved")

    async def save(self) -> None:
        """Write what is new. Raises DatabaseError; then it stays to be written."""
        for name, seconds in list(self._unsaved.items()):
            async with self._database.transaction() as write:
                await write.execute(
                    "INSERT OR REPLACE INTO load_times (endpoint, seconds, at) VALUES (?, ?, ?)",
                    (name, seconds, self._clock()),
                )
            if self._unsaved.get(name) == seconds:
                del self._unsaved[name]
