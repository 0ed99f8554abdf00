"""Changes of how an endpoint is served: who comes, who stays and who goes, by worked examples and by property."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.scheduling.generations import is_awake, is_current, older
from gateway.scheduling.planner import plan
from gateway.scheduling.types import KnownWorker, Plan, Situation, Verb, WantedEndpoint
from tests.support.planning import (
    LONG_AGO,
    NOW,
    carried_out,
    drained,
    endpoint,
    in_memory,
    promises,
    situation,
    started,
    template,
    waiting,
    worker,
)
from worker_manager.contract import Residency, WorkerState

CARD = 20_000
SIZE = 8_000
NEW = msgspec.structs.replace(template("a", SIZE), model="local/new")


def changed(**fields: Any) -> WantedEndpoint:
    """The endpoint `a` after a change of its model."""
    return endpoint("a", **{"promise": SIZE, "template": NEW, "in_flight": 1, **fields})


def old(number: int = 1, card: str = "one", **fields: Any) -> KnownWorker:
    """A worker from before the change."""
    return worker("a", number, card, promise=SIZE, **fields)


def new(number: int = 9, card: str = "one", **fields: Any) -> KnownWorker:
    """A worker from after it, READY unless told otherwise."""
    return worker("a", number, card, promise=SIZE, template=NEW, **fields)


def reasons(decided: Plan, verb: Verb) -> str:
    return " / ".join(one.reason for one in decided.decisions if one.verb is verb)


def test_where_there_is_room_the_successor_starts_and_the_old_one_serves_on() -> None:
    before = situation([changed()], [old(in_flight=1)], one=CARD)
    decided = plan(before)
    (made,) = started(before, decided)
    assert made.model == "local/new"
    assert not drained(before, decided)
    assert "to succeed a-1, which serves until then" in reasons(decided, Verb.START)


def test_while_the_successor_loads_nothing_more_happens() -> None:
    loading = new(state=WorkerState.LOADING)
    before = situation([changed()], [old(in_flight=1), loading], one=3 * CARD)
    decided = plan(before)
    assert not started(before, decided)
    assert not drained(before, decided)


def test_a_successor_on_trial_takes_nobodys_place_yet() -> None:
    before = situation([changed(on_trial=True)], [old(in_flight=1), new(on_trial=True)], one=CARD)
    assert not drained(before, plan(before))


def test_once_the_successor_serves_the_old_one_drains_at_once() -> None:
    before = situation([changed()], [old(in_flight=1), new()], one=CARD)
    decided = plan(before)
    assert decided.draining == {"a-1"}
    assert "a-9 serves in its place" in reasons(decided, Verb.DRAIN)


def test_where_there_is_room_for_one_only_the_old_one_goes_first_and_the_plan_says_so() -> None:
    before = situation([changed()], [old(in_flight=1)], one=10_000)
    decided = plan(before)
    assert decided.draining == {"a-1"}
    assert "no room beside it (8000 MiB): it goes first" in reasons(decided, Verb.DRAIN)
    gone = situation([changed(in_flight=0, **waiting())], [], one=10_000)
    assert [spec.model for spec in plan(gone).desired] == ["local/new"]


def test_a_successor_that_would_not_fit_even_then_leaves_the_old_one_where_it_is() -> None:
    grown = changed(promise=15_000, template=msgspec.structs.replace(NEW, gpu_memory_mib=15_000))
    others = worker("b", 1, "one", promise=10_000, in_flight=1)
    before = situation([grown, endpoint("b", in_flight=1)], [old(in_flight=1), others], one=CARD)
    decided = plan(before)
    assert not drained(before, decided)
    assert "the old workers serve on" in reasons(decided, Verb.WAIT)


def test_idle_workers_of_others_make_room_before_the_old_ones_go_where_both_are_needed() -> None:
    grown = changed(promise=15_000, template=msgspec.structs.replace(NEW, gpu_memory_mib=15_000))
    others = worker("b", 1, "one", promise=10_000)
    before = situation([grown, endpoint("b")], [old(in_flight=1), others], one=CARD)
    assert drained(before, plan(before)) == {"a-1", "b-1"}


def test_of_three_one_after_the_other_is_succeeded() -> None:
    busy = changed(in_flight=90, max_workers=3)
    before = situation([busy], [old(1, in_flight=1), old(2, in_flight=5), old(3, in_flight=3)], one=3 * CARD)
    decided = plan(before)
    assert len(started(before, decided)) == 1
    assert not drained(before, decided)
    one_done = situation([busy], [*before.workers, new()], one=3 * CARD)
    decided = plan(one_done)
    assert drained(one_done, decided) == {"a-1"}
    assert len(started(one_done, decided)) == 1


def test_an_old_one_that_was_used_a_moment_ago_is_succeeded_and_one_idle_for_long_just_goes() -> None:
    fresh = situation([changed(in_flight=0)], [old(last_used=NOW - 5)], one=CARD)
    assert len(started(fresh, plan(fresh))) == 1
    stale = situation([changed(in_flight=0)], [old(last_used=NOW - 5_000)], one=CARD)
    assert plan(stale).desired == ()


def test_an_old_one_that_serves_nobody_yet_goes_at_once() -> None:
    for state in (WorkerState.LOADING, WorkerState.WAITING, WorkerState.BACKOFF, WorkerState.FAILED):
        before = situation([changed(in_flight=0)], [old(state=state)], one=CARD)
        assert drained(before, plan(before)) == {"a-1"}
    resting = situation([changed(in_flight=0)], [old(state=WorkerState.ASLEEP, asked=Residency.ASLEEP_1)], one=CARD)
    assert "a-1" not in {spec.id for spec in plan(resting).desired}


def test_a_worker_of_a_change_that_was_rolled_back_goes_at_once_though_it_is_ready() -> None:
    back = changed(template=template("a", SIZE), rejected=NEW, **waiting())
    before = situation([back], [new()], one=10_000)
    decided = plan(before)
    assert decided.desired == ()
    assert "rolled back" in reasons(decided, Verb.DRAIN)
    assert [spec.model for spec in plan(carried_out(before, decided)).desired] == ["local/tiny"]


def test_another_number_of_gpus_is_another_generation_where_it_was_asked_for() -> None:
    two = changed(template=template("a", SIZE), gpus=2, asked_gpus=2)
    before = situation([two], [old(in_flight=1)], one=CARD, two=CARD)
    (made,) = started(before, plan(before))
    assert len(made.gpus) == 2
    found = situation([msgspec.structs.replace(two, asked_gpus=None)], before.workers, one=CARD, two=CARD)
    assert not started(found, plan(found)), "found by the memory plan alone, it restarts nobody"


def test_a_neighbour_cannot_take_the_old_one_while_its_successor_loads_and_one_must_serve() -> None:
    kept = changed(in_flight=0, min_workers=1)
    other = endpoint("b", promise=10_000, **waiting(since=LONG_AGO), unserved_since=LONG_AGO)
    before = situation([kept, other], [old(), new(state=WorkerState.LOADING)], one=CARD)
    assert not drained(before, plan(before))


# properties: a machine on which loads end, requests end and successors are believed


@st.composite
def changes(draw: st.DrawFn) -> Situation:
    """An endpoint whose spec changed, with some old workers, beside a busy neighbour."""
    size = draw(st.sampled_from([4_000, 8_000, 12_000]))
    most = draw(st.integers(1, 3))
    shape = msgspec.structs.replace(template("a", size), model="local/new")
    asked = endpoint(
        "a",
        template=shape,
        promise=size,
        max_workers=most,
        min_workers=draw(st.integers(0, most)),
        per_worker=4,
        in_flight=draw(st.integers(0, 4 * most)),
    )
    cards = {"one": 24_000, "two": draw(st.sampled_from([0, 8_000, 24_000]))}
    workers = [
        worker("a", number, "one", promise=SIZE, last_used=NOW - draw(st.sampled_from([0, 5_000])))
        for number in range(draw(st.integers(1, min(most, 3))))
    ]
    has_neighbour = draw(st.booleans()) and len(workers) < 3
    if has_neighbour:
        workers.append(worker("b", 1, "one", promise=SIZE, in_flight=1))
    return situation([asked, endpoint("b", promise=SIZE, in_flight=int(has_neighbour))], workers, **cards)


def served(now: Situation) -> int:
    """How many workers of `a` serve."""
    return sum(is_awake(one) and not one.is_leaving() for one in now.workers if one.spec.endpoint == "a")


def loaded(now: Situation) -> Situation:
    """All loads have ended well, and what drained has no request left."""
    workers = tuple(
        msgspec.structs.replace(one, state=WorkerState.READY, since=now.now, last_used=now.now)
        if one.state is WorkerState.LOADING
        else one
        for one in now.workers
    )
    return msgspec.structs.replace(now, workers=workers)


def wanted(now: Situation) -> int:
    one = now.endpoints[0]
    return min(max(-(-one.in_flight // one.per_worker), one.min_workers), one.max_workers)


@settings(max_examples=150, deadline=None)
@given(changes())
def test_step_by_step_a_change_comes_to_its_end_and_never_serves_with_fewer_while_memory_allows(
    before: Situation,
) -> None:
    least = min(served(before), wanted(before))
    asked = before.endpoints[0]
    now = before
    for _ in range(40):
        decided = plan(now)
        held = in_memory(now, decided)
        assert all(held[card] <= room for card, room in now.cards.items()), held
        if not any("no room beside it" in one.reason for one in decided.decisions):
            after = carried_out(now, decided)
            assert served(after) >= min(served(now), least), decided.decisions
        else:
            after = carried_out(now, decided)
            taken = promises([*(one.spec for one in now.workers), *started(now, decided)])
            room = max(before.cards[card] - taken[card] for card in ("one", "two"))
            assert room < asked.promise_mib, "an old one goes first only where its successor has no room beside it"
        following = loaded(after)
        if following == now:
            break
        now = following
    else:
        raise AssertionError(f"no rest: {decided.decisions}")
    stays = older(asked, [one for one in now.workers if one.spec.endpoint == "a"])
    waits = any("serve on" in one.reason for one in decided.decisions)
    assert not stays or waits, decided.decisions
    left = max(before.cards[card] - promises(one.spec for one in now.workers)[card] for card in ("one", "two"))
    assert served(now) >= least or waits or left < asked.promise_mib
    current = [one for one in now.workers if one.spec.endpoint == "a" and is_current(asked, one.spec)]
    assert len(current) <= asked.max_workers


def test_a_successor_that_failed_is_tried_again_after_a_while_and_the_old_one_serves_until_then() -> None:
    two = changed(in_flight=40, max_workers=2)
    failed = new(8, state=WorkerState.FAILED, since=NOW - 299)
    before = situation([two], [old(in_flight=1), new(in_flight=1), failed], one=3 * CARD)
    decided = plan(before)
    assert not drained(before, decided)
    assert not started(before, decided)
    assert decided.wake_at == NOW + 1
    later = msgspec.structs.replace(before, now=NOW + 1)
    decided = plan(later)
    assert drained(later, decided) == {"a-8"}
    assert "failed 300 s ago" in reasons(decided, Verb.DRAIN)
    (made,) = started(later, decided)
    assert made.model == "local/new"
    full = msgspec.structs.replace(later, cards={**later.cards, "one": CARD})
    assert not drained(full, plan(full)), "nobody who serves goes for a second try"


@settings(max_examples=100, deadline=None)
@given(changes(), st.sampled_from([WorkerState.FAILED, WorkerState.BACKOFF]))
def test_while_a_successor_fails_the_old_ones_are_left_alone(before: Situation, state: WorkerState) -> None:
    asked = before.endpoints[0]
    failed = worker("a", 9, "two", promise=asked.promise_mib, template=asked.template, state=state)
    now = msgspec.structs.replace(before, workers=(*before.workers, failed))
    old_ones = {one.spec.id for one in before.workers if one.spec.endpoint == "a"}
    left = {spec.id for spec in plan(now).desired} - plan(now).draining
    assert len(left & old_ones) >= min(len(old_ones), wanted(before)), plan(now).decisions
