"""What the manager was last told: nothing is sent twice, and how warm a worker should be outlives the gateway."""

from typing import Any

import msgspec

from gateway.scheduling.orders import Orders
from tests.support.planning import template
from worker_manager.contract import Adapter, DesiredSet, HostFacts, ObservedSet, ObservedWorker, Residency, WorkerState

SPEC = msgspec.structs.replace(template("a"), id="a-1")
NOBODY = ObservedSet(manager="m", version=1, generation=0, host=HostFacts(launcher="process", device="cuda"))


def seen(state: WorkerState, residency: Residency) -> ObservedWorker:
    return ObservedWorker(
        spec=SPEC, spec_hash="x", state=state, residency=residency, since=5.0, socket="a-1/engine.sock"
    )


def wanted(residencies: dict[str, Residency] | None = None, **more: Any) -> DesiredSet:
    return DesiredSet(generation=1, workers=(SPEC,), residencies=residencies or {}, **more)


def test_the_same_set_is_sent_once_to_each_manager_and_another_residency_is_another_set() -> None:
    orders = Orders(lambda: 7.0)
    first = orders.next(wanted(), NOBODY)
    assert first is not None
    orders.taken(first, "m")
    assert orders.next(wanted(), NOBODY) is None
    assert orders.next(wanted(), msgspec.structs.replace(NOBODY, manager="n")) is not None
    asleep = orders.next(wanted({"a-1": Residency.ASLEEP_1}), NOBODY)
    assert asleep is not None
    assert asleep.generation == first.generation + 1
    assert orders.next(wanted(sleepless={"a-1": "it failed"}), NOBODY) is not None
    assert orders.next(wanted(soon=("local/b",)), NOBODY) is not None


def test_what_was_taken_and_is_not_shown_yet_is_known() -> None:
    orders = Orders(lambda: 7.0)
    sent = orders.next(wanted(), NOBODY)
    assert sent is not None
    assert orders.unseen(NOBODY) == ()
    orders.taken(sent, "m")
    assert orders.unseen(NOBODY) == (SPEC,)
    assert orders.unseen(msgspec.structs.replace(NOBODY, generation=sent.generation)) == ()


def test_the_time_of_an_order_is_kept_until_it_changes() -> None:
    clock = [7.0]
    orders = Orders(lambda: clock[0])
    for clock[0], residencies in ((7.0, {}), (9.0, {"a-1": Residency.ASLEEP_1}), (11.0, {"a-1": Residency.ASLEEP_1})):
        sent = orders.next(wanted(residencies), msgspec.structs.replace(NOBODY, generation=int(clock[0])))
        if sent is not None:
            orders.taken(sent, "m")
    assert orders.asked(seen(WorkerState.SLEEPING, Residency.HOT)) == (Residency.ASLEEP_1, 9.0)


def test_after_a_start_of_the_gateway_a_sleeper_is_taken_for_one() -> None:
    orders = Orders(lambda: 7.0)
    for state, residency, asked in (
        (WorkerState.ASLEEP, Residency.ASLEEP_2, Residency.ASLEEP_2),
        (WorkerState.SLEEPING, Residency.HOT, Residency.ASLEEP_1),
        (WorkerState.WAKING, Residency.ASLEEP_1, Residency.HOT),
        (WorkerState.READY, Residency.HOT, Residency.HOT),
    ):
        assert orders.asked(seen(state, residency)) == (asked, 5.0)


def test_other_adapters_are_another_set() -> None:
    orders = Orders(lambda: 7.0)
    red = {"a-1": (Adapter(name="red", path="local/red", revision="a1", rank=8),)}
    first = orders.next(wanted(adapters=red), NOBODY)
    assert first is not None
    orders.taken(first, "m")
    assert orders.next(wanted(adapters=red), NOBODY) is None
    assert orders.next(wanted(), NOBODY) is not None


def test_a_manager_that_took_orders_from_somebody_else_is_told_ours_again() -> None:
    heard: list[int] = []
    orders = Orders(lambda: 7.0, heard.append)
    first = orders.next(wanted(), NOBODY)
    assert first is not None
    orders.taken(first, "m")
    same = msgspec.structs.replace(NOBODY, generation=first.generation)
    assert orders.next(wanted(), same) is None
    again = orders.next(wanted(), msgspec.structs.replace(NOBODY, generation=999))
    assert again is not None
    assert again.generation == 1000
    assert heard == [999]
    orders.taken(again, "m")
    assert orders.next(wanted(), msgspec.structs.replace(NOBODY, generation=1000)) is None
    assert heard == [999]
