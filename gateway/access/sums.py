"""What happens too often to be written each time: added up, in bounded memory, on its way to the audit trail."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import structlog

from gateway.actor import NOBODY, Actor
from gateway.database.chain import Change
from gateway.database.connection import DatabaseError

log = structlog.get_logger(__name__)

UNWRITTEN = 1_000
"""Sums that are not written yet; what would be a further one is added to one for all."""
AT_ONCE = 100
"""Records that may be written at once, and then one in each EACH_SECONDS: some 1,000 a day, whoever tries what."""
EACH_SECONDS = 90.0
SEVERAL = "several"
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


class Sum:
    """The same thing, so many times since the last record of it."""

    def __init__(self, actor: Actor, now: float, facts: Mapping[str, str | int]) -> None:
        self.actor = actor
        """With the address, and the request that was the first."""
        self.first_at = self.last_at = now
        self.count = 0
        self.target = ""
        """The last one that was named."""
        self.facts = dict(facts)
        """Texts are the first ones'; numbers are added up."""

    def add(self, now: float, count: int, target: str, facts: Mapping[str, str | int]) -> None:
        """It happened again, so many times."""
        self.last_at, self.target = now, target or self.target
        self.count += count
        for name, value in facts.items():
            before = self.facts.get(name)
            if isinstance(before, int) and isinstance(value, int):
                self.facts[name] = before + value

    def record(self, action: str) -> tuple[Actor, Change]:
        """As the trail has it."""
        times = {"first_at": round(self.first_at, 3), "last_at": round(self.last_at, 3)}
        return self.actor, Change(action, self.target, None, {"count": self.count, **self.facts, **times})


class Sums:
    """Sums of one action, by whatever tells them apart."""

    def __init__(self, action: str, record: Record, clock: Callable[[], float]) -> None:
        self._action = action
        self._record = record
        self._clock = clock
        self.unwritten: OrderedDict[str, Sum] = OrderedDict()
        self._writing = Allowance(AT_ONCE, 1 / EACH_SECONDS, clock())

    def note(self, name: str, actor: Actor, target: str, facts: Mapping[str, str | int]) -> None:
        """It happened once more; `name` tells which sum it belongs to."""
        if name not in self.unwritten and len(self.unwritten) >= UNWRITTEN:
            name, actor = SEVERAL, msgspec.structs.replace(actor, who=NOBODY, subject="", address=SEVERAL)
        now = self._clock()
        found = self.unwritten.get(name)
        if found is None:
            zero = {fact: 0 if isinstance(value, int) else value for fact, value in facts.items()}
            found = self.unwritten[name] = Sum(actor, now, zero)
        found.add(now, 1, target, facts)

    async def write(self) -> None:
        """Write as many records as may be written now. The rest, and what fails, waits and goes on adding up."""
        now = self._clock()
        chosen: list[tuple[str, Sum]] = []
        for name, one in self.unwritten.items():
            if self._writing.take(now) > 0:
                break
            chosen.append((name, one))
        if not chosen:
            return
        for name, _ in chosen:  # before the write: what happens meanwhile belongs to the next record
            del self.unwritten[name]
        try:
            await self._record([one.record(self._action) for _, one in chosen])
        except DatabaseError as problem:
            log.warning("sums cannot be recorded", action=self._action, problem=str(problem), records=len(chosen))
            for name, one in chosen:
                later = self.unwritten.get(name)
                if later is not None:
                    one.add(later.last_at, later.count, later.target, later.facts)
                self.unwritten[name] = one
