"""Keys, their limits and what they spend, kept in step."""

import asyncio
from pathlib import Path

import structlog

from gateway.access.gate import Gate
from gateway.access.keyring import Keyring, Tokens
from gateway.access.ledger import Ledger
from gateway.access.minutes import Minutes
from gateway.access.store import BudgetStore
from gateway.access.types import StoredKey
from gateway.database.connection import DatabaseError
from gateway.errors import NotFound

log = structlog.get_logger(__name__)


class Accounts:
    """Lets the gate know of every key, and the ledger of all that is spent."""

    def __init__(self, keyring: Keyring, store: BudgetStore, folder: Path, people: Tokens | None = None) -> None:
        """`folder`: where the last minute is kept; `people`: who signs in with a token in place of a key."""
        self.gate = Gate()
        self._minutes = Minutes(folder, self.gate)
        self._keyring = keyring
        self._ledger = Ledger(store)
        keyring.people = people
        keyring.kept, keyring.dropped = self._limit, self._forget
        self.gate.spent_more = self._ledger.note

    async def load(self) -> None:
        """Read what was spent, then the keys."""
        await self._ledger.load()
        await self._keyring.load()

    async def recall(self) -> None:
        """Put back what was taken within the last minute, once all limits are known."""
        await self._minutes.recall()

    async def run(self) -> None:
        """Write what is spent and taken, for ever; cancel it, and `close` writes the rest."""
        await asyncio.gather(self._ledger.run(), self._minutes.run())

    def _limit(self, key: StoredKey) -> None:
        spec = key.spec
        self.gate.set_key(key.id, spec.name, spec.limits, spec.budget, self._ledger.spent(key.id))

    def _forget(self, key_id: str) -> None:
        self.gate.drop_key(key_id)
        self._ledger.forget(key_id)

    async def reset(self, key_id: str) -> StoredKey:
        """Let a key's budget begin anew. Raises NotFound where there is none."""
        stored = self._keyring.get(key_id)
        account = self.gate.account(key_id)
        if account is None:
            raise NotFound(f"The key '{stored.spec.name}' has no budget")
        await self._ledger.reset(account)
        self.gate.reset(account)
        return stored

    async def note_used(self) -> None:
        """Store when keys were used last."""
        try:
            await self._keyring.write_used()
        except DatabaseError as problem:
            log.warning("the last use of keys could not be stored", problem=str(problem))

    async def close(self) -> None:
        """Store what is not stored yet, and let go of the issuer of sign-in tokens."""
        if self._keyring.people is not None:
            await self._keyring.people.close()
        try:
            await self._ledger.write()
        except DatabaseError as problem:
            log.error("what keys have spent is lost: the database took no writes", problem=str(problem))  # noqa: TRY400 - the cause is all there is to tell
        await self._minutes.write()
        await self.note_used()
