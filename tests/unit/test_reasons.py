"""Why each worker is where it is, long after the plan that decided it."""

import msgspec

from gateway.scheduling.reasons import Reasons
from gateway.scheduling.types import Decision, Plan, Verb
from tests.support.planning import template


def planned(*decisions: Decision, desired: tuple[str, ...] = ()) -> Plan:
    specs = tuple(msgspec.structs.replace(template("a"), id=one) for one in desired)
    return Plan(desired=specs, draining=frozenset(), decisions=decisions, wake_at=None)


def decision(verb: Verb, worker: str | None, reason: str) -> Decision:
    return Decision(verb=verb, endpoint="a", worker=worker, reason=reason)


def test_the_last_decision_about_a_worker_is_kept_until_it_is_gone() -> None:
    reasons = Reasons()
    start = decision(Verb.START, "a-1", "3 waiting")
    reasons.note(1.0, planned(start, decision(Verb.WAIT, None, "no room"), desired=("a-1",)), [])
    reasons.note(2.0, planned(desired=("a-1",)), ["a-1"])
    why = reasons.of("a-1")
    assert why is not None
    assert (why.at, why.decision) == (1.0, start)
    reasons.note(3.0, planned(decision(Verb.DRAIN, "a-1", "idle")), ["a-1"])
    reasons.note(4.0, planned(), ["a-1"])
    assert {one: (why.at, why.decision.verb) for one, why in reasons.all().items()} == {"a-1": (3.0, Verb.DRAIN)}
    reasons.note(5.0, planned(), [])
    assert reasons.all() == {}
