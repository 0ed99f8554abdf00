"""Failed sign-ins: limited for each client address, and recorded in sums that no attacker can make large.

An address may fail `per_minute` times in a row and then once in every 60 / `per_minute` seconds; what comes on top is
answered 429. Keys of ours are 256 random bits, so a good one is taken from a limited address too: many people may
share it. Only an admin key that somebody made up can be guessed, and is not even tried from there.

Requests without any credential are not counted: nothing is guessed by them, and health checks send such.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from math import ceil

import structlog

from gateway.access.credentials import PREFIX, from_headers, id_of, well_formed
from gateway.actor import NOBODY, Actor
from gateway.addresses import Addresses
from gateway.database.chain import Change
from gateway.database.connection import DatabaseError
from gateway.errors import GatewayError, TooManyRequests, Unauthorized
from gateway.settings import Settings
from gateway.types import Principal

log = structlog.get_logger(__name__)

ADDRESSES = 10_000
"""Addresses that are counted at once, about 3 MB; who failed longest ago is forgotten first."""
UNWRITTEN = 1_000
"""Addresses with failures that are not written yet; those of further ones are summed up as one."""
WRITE_SECONDS = 10.0
AT_ONCE = 100
"""Records that may be written at once, and then one in each EACH_SECONDS: some 1,000 a day, whoever tries what."""
EACH_SECONDS = 90.0
RANDOM_LENGTH = 40
"""Characters of a key that is long enough to be random."""
EVERYBODY = "several"
"""The address of a record that sums up what others had no room for."""

Record = Callable[[list[tuple[Actor, Change]]], Awaitable[None]]
"""Writes changes to the audit trail, all or none; raises DatabaseError."""


class Allowance:
    """A bucket that holds so many tokens and is filled at a rate; tokens a second."""

    def __init__(self, size: float, rate: float, now: float) -> None:
        self._size, self._rate = size, rate
        self._left, self._at = size, now

    def take(self, now: float) -> float:
        """Take a token: 0. Or the seconds until there is one, and nothing is taken."""
        self._left, self._at = min(self._size, self._left + max(0.0, now - self._at) * self._rate), now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate

    def wait(self, now: float) -> float:
        """Seconds until there is a token."""
        return max(0.0, (1 - self._left) / self._rate - (now - self._at))


class Failures:
    """What one address has failed since the last record of it."""

    def __init__(self, request_id: str, now: float) -> None:
        self.request_id = request_id
        self.first_at = self.last_at = now
        self.count = 0
        self.limited = 0
        self.key = ""
        """The public id that the last well-formed key had: one that was revoked or has expired, most likely."""

    def followed_by(self, later: "Failures") -> "Failures":
        """Both together."""
        self.last_at, self.key = later.last_at, later.key or self.key
        self.count += later.count
        self.limited += later.limited
        return self


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
        self._record = record
        self._per_minute = per_minute
        self._guessable = guessable
        self._clock = clock
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()
        self._unwritten: OrderedDict[str, Failures] = OrderedDict()
        self._writing = Allowance(AT_ONCE, 1 / EACH_SECONDS, clock())
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
        self._note(address, now, request_id, key, limited=wait > 0)
        if wait == 0:
            return error
        self.limited = True
        return too_many(address, wait)

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

    def _note(self, address: str, now: float, request_id: str, key: bytes, *, limited: bool) -> None:
        where = address if address in self._unwritten or len(self._unwritten) < UNWRITTEN else EVERYBODY
        failures = self._unwritten.get(where)
        if failures is None:
            failures = self._unwritten[where] = Failures(request_id, now)
        failures.last_at = now
        failures.count += 1
        failures.limited += limited
        if well_formed(key):
            failures.key = id_of(key)

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
        """Write as many records as may be written now. The rest, and what fails, waits and goes on adding up."""
        now = self._clock()
        chosen: list[tuple[str, Failures]] = []
        for address, failures in self._unwritten.items():
            if self._writing.take(now) > 0:
                break
            chosen.append((address, failures))
        if not chosen:
            return
        for address, _ in chosen:  # before the write: what fails meanwhile belongs to the next record
            del self._unwritten[address]
        try:
            await self._record([_recorded(address, failures) for address, failures in chosen])
        except DatabaseError as problem:
            log.warning("failed sign-ins cannot be recorded", problem=str(problem), addresses=len(chosen))
            for address, failures in chosen:
                later = self._unwritten.get(address)
                self._unwritten[address] = failures if later is None else failures.followed_by(later)


def _recorded(address: str, failures: Failures) -> tuple[Actor, Change]:
    facts = {
        "count": failures.count,
        "limited": failures.limited,
        "first_at": round(failures.first_at, 3),
        "last_at": round(failures.last_at, 3),
    }
    actor = Actor(who=NOBODY, address=address, request_id=failures.request_id)
    return actor, Change("sign_in.failed", failures.key, None, facts)


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
