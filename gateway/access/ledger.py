"""What keys have spent on its way to the database: noted in no time, written in batches behind the requests.

Written are whole sums and no differences, so a write that has to be done again harms nothing.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from gateway.access.budget import Account, Spent
from gateway.access.store import BudgetStore
from gateway.database.connection import DatabaseError

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.5
"""How long spending gathers before it is written: what a `kill -9` may cost at the most, but for the write itself."""
RETRY_SECONDS = 5.0


class Ledger:
    """The accounts that have changed, and the task that writes them."""

    def __init__(self, store: BudgetStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._written: dict[str, Spent] = {}
        self._changed: dict[str, Account] = {}
        self._arrived = asyncio.Event()

    async def load(self) -> None:
        """Read what was spent."""
        self._written = await self._store.all()

    def spent(self, key_id: str) -> Spent | None:
        """What a key has spent, as far as it was written."""
        return self._written.get(key_id)

    def note(self, account: Account) -> None:
        """Something of this account was spent."""
        if self._changed.get(account.key_id) is not account:  # else it is waiting to be written already
            self._changed[account.key_id] = account
            self._arrived.set()

    def forget(self, key_id: str) -> None:
        """The key is gone."""
        self._written.pop(key_id, None)
        self._changed.pop(key_id, None)

    async def reset(self, account: Account) -> None:
        """Store that nothing of a budget is spent any more, before it is so. Raises DatabaseError."""
        now = self._clock()
        await self._store.reset(account.key_id, account.spent(now), account.fresh(now))

    async def run(self) -> None:
        """Write what is spent, for ever; cancel it and `write` once more at the end."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_SECONDS)
            try:
                await self.write()
            except DatabaseError as problem:
                log.warning("what keys have spent cannot be written, and is kept in memory", problem=str(problem))
                await asyncio.sleep(RETRY_SECONDS)

    async def write(self) -> None:
        """Write what is not written yet. Raises DatabaseError; then all of it is kept."""
        changed, self._changed = self._changed, {}
        self._arrived.clear()
        if not changed:
            return
        now = self._clock()
        spent = {key_id: account.spent(now) for key_id, account in changed.items()}
        try:
            await self._store.write(spent)
        except BaseException:
            self._changed = changed | self._changed
            self._arrived.set()
            raise
        self._written |= spent
