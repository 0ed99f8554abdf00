"""Keys, their limits and what they spend, kept in step."""

import time
from collections.abc import Callable

import structlog

from gateway.access.gate import Gate
from gateway.access.keyring import Keyring
from gateway.access.ledger import Ledger
from gateway.access.types import StoredKey
from gateway.database.connection import DatabaseError
from gateway.errors import NotFound

log = structlog.get_logger(__name__)


class Accounts:
    """Lets the gate know of every key, and the ledger of all that is spent."""

    def __init__(self, keyring: Keyring, gate: Gate, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._keyring = keyring
        self._gate = gate
        self._ledger = ledger
        self._clock = clock
        keyring.kept, keyring.dropped = self._limit, self._forget
        gate.spent_more = ledger.note

    async def load(self) -> None:
        """Read what was spent, then the keys."""
        await self._ledger.load()
        await self._keyring.load()

    def _limit(self, key: StoredKey) -> None:
        spec = key.spec
        self._gate.set_key(key.id, spec.name, spec.limits, spec.budget, self._ledger.spent(key.id))

    def _forget(self, key_id: str) -> None:
        self._gate.forget_key(key_id)
        self._ledger.forget(key_id)

    async def reset(self, key_id: str) -> StoredKey:
        """Let a key's budget begin anew. Raises NotFound where there is none."""
        stored = self._keyring.get(key_id)
        account = self._gate.account(key_id)
        if account is None:
            raise NotFound(f"The key '{stored.spec.name}' has no budget")
        await self._ledger.reset(account)
        self._gate.reset(account)
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
        await self.note_used()
