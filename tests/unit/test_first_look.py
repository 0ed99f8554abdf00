"""What a manager tells before it knows what runs: nothing."""

import msgspec

from tests.unit.test_reconcile import NOW, spec
from worker_manager import tracked as life
from worker_manager.contract import WorkerState
from worker_manager.first_look import FirstLook
from worker_manager.tracked import Tracked

MOMENT = 0.001
LONG = 30.0


async def test_before_the_launcher_has_listed_what_there_is_nothing_is_told_but_why() -> None:
    look = FirstLook({}, MOMENT)
    assert await look.taken() == "the units are being listed"
    look.failed("Docker does not answer")
    assert await look.taken() == "Docker does not answer"
    look.listed()
    assert await look.taken() == ""


async def test_who_asks_waits_for_adopted_workers_a_while_and_then_not_again() -> None:
    workers: dict[str, Tracked] = {"w1": life.adopted(spec(), None, NOW, running=True)}
    look = FirstLook(workers, MOMENT)
    look.listed()
    assert await look.taken() == ""
    slow = FirstLook(workers, LONG)
    slow.listed()
    workers["w1"] = life.entered(workers["w1"], WorkerState.READY, NOW)
    slow.check()
    assert await slow.taken() == ""


def test_an_adopted_worker_is_shown_as_not_asked_until_it_was() -> None:
    found = life.adopted(spec(), None, NOW, running=True)
    assert life.observed(found, None, None, made_at=NOW).is_unasked
    busy = life.worked(found, NOW + 50)
    assert (busy.since, life.observed(busy, None, None).is_unasked) == (NOW + 50, True)
    ready = life.entered(found, WorkerState.READY, NOW)
    assert not life.observed(ready, None, None).is_unasked
    assert life.observed(ready, None, None, adapters=None).is_unasked
    assert life.observed(msgspec.structs.replace(found, reason="/health answers 503"), None, None).is_unasked is False
