"""Failed sign-ins: limited for each client address, and recorded in sums that no attacker can make large. Denials too.

An address may fail `per_minute` times in a row and then once in every 60 / `per_minute` seconds; what comes on top is
answered 429. Keys of ours are 256 random bits, so a good one is taken from a limited address too: many people may
share it. Only an admin key that somebody made up can be guessed, and is not even tried from there.

Requests without any credential are not counted: nothing is guessed by them, and health checks send such.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import ceil

import structlog

from gateway.access.credentials import PREFIX, from_headers, id_of, well_formed
from gateway.access.sums import Allowance, Record, Sums
from gateway.actor import NOBODY, Actor
from gateway.addresses import Addresses
from gateway.errors import Forbidden, GatewayError, TooManyRequests, Unauthorized
from gateway.settings import Settings
from gateway.types import Principal

log = structlog.get_logger(__name__)

ADDRESSES = 10_000
"""Addresses that are counted at once, about 3 MB; who failed longest ago is forgotten first."""
WRITE_SECONDS = 10.0
RANDOM_LENGTH = 40
"""Characters of a key that is long enough to be random."""
PATH_LENGTH = 200
"""Characters of a path that are recorded."""


def guessable(key: str) -> bool:
    """Whether a person may have made this key up; `scripts/up` writes `hst_admin_` and 48 random digits."""
    return not key.startswith(PREFIX) or len(key) < RANDOM_LENGTH


class SignIns:
    """Counts failed sign-ins. Only failures cost anything; all memory is bounded."""

    def __init__(
        self,
        record: Record,
        addresses: Addresses,
        per_minute: int,
        *,
        guessable: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`guessable`: the id of the key that a person made up, if there is one."""
        self.addresses = addresses
        self._per_minute = per_minute
        self._guessable = guessable
        self._clock = clock
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()
        self.failures = Sums("sign_in.failed", record, clock)
        """By address, with the public id that the last well-formed key had: one that was revoked or has expired."""
        self.denials = Sums("access.denied", record, clock)
        """By key, scope and address."""
        self.limited = False
        """Whether any address has been limited lately: else nobody need look at `admit`."""

    def failed(
        self, error: Unauthorized, peer: str | None, headers: Iterable[tuple[bytes, bytes]], request_id: str
    ) -> GatewayError:
        """Count a request that was refused; what to answer: the same error, or TooManyRequests."""
        headers = list(headers)
        key = from_headers(dict(headers))
        if key is None:
            return error
        address, now = self.addresses.client(peer, headers), self._clock()
        wait = self._allowance(address, now).take(now)
        actor = Actor(who=NOBODY, address=address, request_id=request_id)
        self.failures.note(address, actor, id_of(key) if well_formed(key) else "", {"limited": int(wait > 0)})
        if wait == 0:
            return error
        self.limited = True
        return too_many(address, wait)

    def denied(
        self,
        error: Forbidden,
        peer: str | None,
        headers: Iterable[tuple[bytes, bytes]],
        request_id: str,
        path: str,
    ) -> None:
        """Count a request of a known key that may not do what it asks for."""
        who = error.who
        if who is None:
            return
        actor = Actor(
            who=who.key_id, subject=who.name, address=self.addresses.client(peer, headers), request_id=request_id
        )
        name = f"{who.key_id} {error.scope} {actor.address}"
        self.denials.note(name, actor, path[:PATH_LENGTH], {"scope": error.scope})

    def admit(self, principal: Principal, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise TooManyRequests for a key that can be guessed, from an address that has failed too often."""
        if not self.limited or principal.key_id != self._guessable:
            return
        address = self.addresses.client(peer, headers)
        allowance = self._allowances.get(address)
        wait = allowance.wait(self._clock()) if allowance is not None else 0.0
        if wait > 0:
            raise too_many(address, wait)

    def _allowance(self, address: str, now: float) -> Allowance:
        found = self._allowances.get(address)
        if found is None:
            found = self._allowances[address] = Allowance(self._per_minute, self._per_minute / 60, now)
            if len(self._allowances) > ADDRESSES:
                self._allowances.popitem(last=False)
        self._allowances.move_to_end(address)
        return found

    async def run(self) -> None:
        """Write what has gathered, every few seconds; for ever, and once more when it is cancelled."""
        try:
            while True:
                await asyncio.sleep(WRITE_SECONDS)
                await self.write()
                now = self._clock()
                self.limited = any(allowance.wait(now) > 0 for allowance in self._allowances.values())
        except asyncio.CancelledError:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_SECONDS):
                    await self.write()
            raise

    async def write(self) -> None:
        """Write what has gathered, as much of it as may be written now."""
        await self.failures.write()
        await self.denials.write()


def too_many(address: str, wait: float) -> TooManyRequests:
    """The refusal of an address that has failed too often."""
    return TooManyRequests(
        f"Too many failed sign-ins from {address}: send a key that is known, at the earliest in {ceil(wait)} s "
        "(HOSTLER_SIGN_INS_PER_MINUTE); an admin finds the attempts in GET /api/audit",
        retry_after=ceil(wait),
    )


def sign_ins_of(record: Record, settings: Settings, admin: str) -> SignIns:
    """Sign-ins as the operator wants them limited; `admin` is the id of the key in the settings."""
    return SignIns(
        record,
        Addresses(settings.proxies()),
        settings.sign_ins_per_minute,
        guessable=admin if guessable(settings.admin_key) else None,
    )
