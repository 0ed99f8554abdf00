"""The starvation bound of docs/design.md, measured from outside, on a run with faults. Pure.

An endpoint is unserved from the first look at which requests wait for it and no worker of it serves. Without faults
that lasts at most S + (m + 1) * (L + R + A + X + L). A fault adds what it takes: the time from its injection until it
is found and a new start is allowed, and one load; so much of a spell is not counted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.scheduling.types import Situation

SLACK_SECONDS = 2.0
"""Looks are half a second apart, and the planner takes a moment."""
STARVATION_SECONDS = Situation(now=0.0, endpoints=(), workers=(), cards={}).starvation_seconds
RESIDENCY_SECONDS = Situation(now=0.0, endpoints=(), workers=(), cards={}).minimum_residency_seconds

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Spell:
    """One endpoint unserved, from when to when (Unix seconds), and how many were so before it."""

    endpoint: str
    since: float
    until: float
    ahead: int

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.until - self.since

    def counted(self, faults: Iterable[Interval]) -> float:
        """How much of it no fault was at work in."""
        return self.seconds - covered((self.since, self.until), faults)


class Spells:
    """Gathers spells from look to look."""

    def __init__(self) -> None:
        self.ended: list[Spell] = []
        self._open: dict[str, tuple[float, int]] = {}

    def look(self, now: float, unserved: Mapping[str, bool]) -> None:
        """Take in who is unserved now."""
        waits = {name for name, is_so in unserved.items() if is_so}
        for name in self._open.keys() - waits:
            since, ahead = self._open.pop(name)
            self.ended.append(Spell(endpoint=name, since=since, until=now, ahead=ahead))
        for name in waits - self._open.keys():
            self._open[name] = (now, len(waits) - 1)

    def all(self, now: float) -> list[Spell]:
        """Every spell, those that go on included."""
        going = [Spell(endpoint=name, since=at, until=now, ahead=ahead) for name, (at, ahead) in self._open.items()]
        return [*self.ended, *going]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn is made of; seconds. `load` is the longest seen without a fault, from creation to READY."""

    load: float
    answer: float
    leave: float

    @property
    def seconds(self) -> float:
        """The longest turn. A load may first wait for another one on its card."""
        loads = 2 * self.load
        return loads + max(RESIDENCY_SECONDS, self.load) + self.answer + self.leave + loads

    def bound(self, ahead: int) -> float:
        """How long an endpoint may be unserved."""
        return STARVATION_SECONDS + (ahead + 1) * self.seconds


def covered(spell: Interval, faults: Iterable[Interval]) -> float:
    """How much of one interval others cover, together."""
    begin, end = spell
    total, reached = 0.0, begin
    for since, until in sorted(faults):
        total += max(0.0, min(until, end) - max(since, reached))
        reached = max(reached, min(until, end))
    return total
