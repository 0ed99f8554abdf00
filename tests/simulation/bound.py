"""The starvation bound, as docs/design.md states it, checked on a run.

An endpoint is unserved from the moment a request waits for it and no worker of it serves, until one is READY. If
nothing fails and all endpoints have one priority, that lasts at most

    S + (m + 1) * (L + R + A + X + L)

where S is the starvation bound, m the number of endpoints that were unserved before it, and over all endpoints L is the
longest load, R the longest residency a worker may insist on, A the longest answer, X the longest way off a card (a stop
or a sleep). One turn: what comes up on the cards it needs must load (L) and stay (R), is drained (A), leaves (X), and
it loads itself (L).
"""

import math
from collections.abc import Iterator

import msgspec

from gateway.scheduling import eviction, ladder
from gateway.scheduling.types import Plan, Situation
from tests.simulation.policies import Planner
from tests.simulation.scenario import Scenario
from worker_manager.contract import WorkerState


class Spell(msgspec.Struct, frozen=True):
    """One endpoint unserved, from when to when, and how many were so before it."""

    model: str
    since: float
    until: float
    ahead: int

    def seconds(self) -> float:
        """How long it lasted."""
        return self.until - self.since


class Watcher(Planner):
    """The planner, and a note of who is unserved for how long."""

    def __init__(self) -> None:
        self.spells: list[Spell] = []
        self.shortest_stay = math.inf
        """Seconds the shortest-lived worker was ready before it had to make room."""
        self._open: dict[str, tuple[float, int]] = {}

    def decide(self, situation: Situation) -> Plan:
        """Look, then plan."""
        unserved = {one.name: one.unserved_since for one in situation.endpoints if one.unserved_since is not None}
        for name in [name for name in self._open if name not in unserved]:
            since, ahead = self._open.pop(name)
            self.spells.append(Spell(name, since, situation.now, ahead))
        for name, since in unserved.items():
            if name not in self._open:
                self._open[name] = (since, len(unserved) - 1)
        decided = super().decide(situation)
        for decision in decided.decisions:
            if decision.reason.startswith("makes room for "):
                self._evicted(situation, decision.worker)
        return decided

    def _evicted(self, situation: Situation, worker: str | None) -> None:
        for known in situation.workers:
            if known.spec.id == worker and known.state is WorkerState.READY:
                self.shortest_stay = min(self.shortest_stay, situation.now - known.since)

    def all(self, now: float) -> Iterator[Spell]:
        """Every spell, those that have not ended included."""
        yield from self.spells
        for name, (since, ahead) in self._open.items():
            yield Spell(name, since, now, ahead)


def turn_seconds(scenario: Scenario) -> float:
    """What one turn takes at most."""
    load = max(model.load_seconds for model in scenario.models)
    answer = max((request.seconds for request in scenario.requests), default=0.0)
    leave = max(max(model.stop_seconds, model.first_sleep_seconds, model.sleep_seconds) for model in scenario.models)
    back = max([load, ladder.LOAD_SECONDS])
    stay = max(scenario.minimum_residency_seconds, eviction.BUSY_STAYS_FOR_BRING_BACKS * back)
    return load + stay + answer + leave + load


def bound_seconds(scenario: Scenario, ahead: int) -> float:
    """How long an endpoint may be unserved at most."""
    return scenario.starvation_seconds + (ahead + 1) * turn_seconds(scenario)
