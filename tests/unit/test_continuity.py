"""Over a restart of the manager workers are what they were, until the new one knows better."""

from typing import Any

import msgspec

from gateway.scheduling.continuity import Continuity
from gateway.scheduling.slots import incarnation
from tests.support.planning import template
from worker_manager.contract import (
    AdapterState,
    HostFacts,
    ObservedAdapter,
    ObservedSet,
    ObservedWorker,
    Residency,
    SleepFacts,
    WorkerState,
)

HOST = HostFacts(launcher="process", device="cpu")
RED = ObservedAdapter(name="red", revision="a1", state=AdapterState.READY, since=5.0)
BLUE = msgspec.structs.replace(RED, name="blue")
MADE_AT = 1.0


def worker(state: WorkerState = WorkerState.READY, since: float = 10.0, **fields: Any) -> ObservedWorker:
    spec = msgspec.structs.replace(template("a"), id="w1")
    given = {"residency": Residency.HOT, "made_at": MADE_AT, **fields}
    return ObservedWorker(spec=spec, spec_hash="x", state=state, since=since, socket="w1/engine.sock", **given)


def found(since: float = 100.0, **fields: Any) -> ObservedWorker:
    """As a new manager shows a worker that it has found running and not asked yet."""
    return worker(WorkerState.LOADING, since, residency=Residency.GONE, is_unasked=True, **fields)


def shown(manager: str, *workers: ObservedWorker) -> ObservedSet:
    return ObservedSet(manager=manager, version=1, generation=0, workers=workers, host=HOST)


def after(before: ObservedWorker, *news: ObservedWorker) -> list[ObservedWorker]:
    """What is made of the news of a second manager, one by one, after the first one had shown a worker like this."""
    continuity = Continuity()
    assert continuity.carry(shown("first", before)) == shown("first", before)
    return [one for each in news for one in continuity.carry(shown("second", each)).workers]


def test_a_worker_that_served_goes_on_serving_while_the_new_manager_has_not_asked_it() -> None:
    served = worker(adapters=(RED,), can_sleep=True)
    assert after(served, found(), found(since=130.0)) == [served, served]


def test_what_the_new_manager_finds_out_counts() -> None:
    silent = msgspec.structs.replace(found(), is_unasked=False, reason="/health answers 503")
    assert after(worker(), found(), silent, found()) == [worker(), silent, found()]


def test_another_container_of_the_same_name_is_another_worker() -> None:
    anew = found(made_at=2.0)
    assert after(worker(adapters=(RED,)), anew) == [anew]
    assert after(worker(made_at=0.0), found(made_at=0.0)) == [found(made_at=0.0)]


def test_one_that_serves_on_has_lost_nothing_of_what_it_had_read() -> None:
    before = worker(sleep=SleepFacts(wake_seconds=2.0))
    (now,) = after(before, worker(since=100.0))
    assert incarnation(now) == incarnation(before)
    assert now.sleep == before.sleep


def test_one_that_slept_or_died_under_the_new_manager_begins_anew() -> None:
    again = worker(since=200.0)
    assert after(worker(), worker(since=100.0), again) == [worker(), again]
    dead = worker(WorkerState.BACKOFF, since=150.0, made_at=0.0)
    assert after(worker(), worker(since=100.0), dead, again) == [worker(), dead, again]


def test_its_adapters_are_those_it_had_until_the_new_manager_knows_them() -> None:
    before = worker(adapters=(RED, BLUE))
    unasked, known = worker(since=100.0, is_unasked=True), worker(since=100.0, adapters=(RED,))
    assert [one.adapters for one in after(before, unasked, known)] == [(RED, BLUE), (RED,)]


def test_a_sleeper_sleeps_on_and_what_its_sleep_was_like_is_not_forgotten() -> None:
    before = worker(WorkerState.ASLEEP, residency=Residency.ASLEEP_1, sleep=SleepFacts(freed_mib=900, wake_seconds=2.0))
    told = worker(WorkerState.ASLEEP, 100.0, residency=Residency.ASLEEP_1, sleep=SleepFacts(freed_mib=800))
    asked, now = after(before, found(), told)
    assert asked == before
    assert (now.since, now.sleep) == (before.since, SleepFacts(freed_mib=800, wake_seconds=2.0))


def test_a_second_restart_carries_on_what_the_first_one_carried() -> None:
    continuity = Continuity()
    continuity.carry(shown("first", worker(adapters=(RED,))))
    continuity.carry(shown("second", found()))
    assert continuity.carry(shown("third", found(since=120.0))).workers == (worker(adapters=(RED,)),)
