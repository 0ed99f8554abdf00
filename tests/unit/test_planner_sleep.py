"""The planner's ladder by worked examples: who sleeps when, who wakes, who is stopped, and what is held for whom."""

from typing import Any

import msgspec

from gateway.scheduling.ladder import FIRST_SLEEP_SECONDS, REHEARSE_SECONDS, RESIDUE_MIB
from gateway.scheduling.planner import SLEEP_ORDER_SECONDS, plan
from gateway.scheduling.types import KnownWorker, Plan, Situation, Verb, WantedEndpoint
from tests.support.planning import (
    HOST_OF_SLEEPER,
    LONG_AGO,
    NOW,
    carried_out,
    drained,
    endpoint,
    situation,
    started,
    waiting,
    worker,
)
from worker_manager.contract import Residency, SleepFacts, WorkerState

CARD = 20_000
LIGHT, DEEP = Residency.ASLEEP_1, Residency.ASLEEP_2
QUICK = SleepFacts(freed_mib=9_000, sleep_seconds=1, wake_seconds=2, host_mib=HOST_OF_SLEEPER)
SLOW = SleepFacts(freed_mib=9_000, sleep_seconds=30, wake_seconds=2, host_mib=HOST_OF_SLEEPER)


def sleepy(name: str, **fields: Any) -> WantedEndpoint:
    """An endpoint whose workers may sleep."""
    return endpoint(name, **{"sleep": (LIGHT,), **fields})


def able(name: str, number: int, *cards: str, **fields: Any) -> KnownWorker:
    """A worker that can sleep, and has done so quickly before."""
    return worker(name, number, *cards, **{"can_sleep": True, "sleep": QUICK, "memory_mib": 10_000, **fields})


def asleep(name: str, number: int, *cards: str, **fields: Any) -> KnownWorker:
    """A worker that sleeps and holds 1000 MiB."""
    return able(name, number, *cards, **{"state": WorkerState.ASLEEP, "asked": LIGHT, "memory_mib": 1_000, **fields})


def scene(*parts: WantedEndpoint | KnownWorker, budget: int = 100_000, **cards: int) -> Situation:
    """A situation with host memory for sleepers."""
    ends = [part for part in parts if isinstance(part, WantedEndpoint)]
    workers = [part for part in parts if isinstance(part, KnownWorker)]
    return msgspec.structs.replace(situation(ends, workers, **(cards or {"one": CARD})), sleep_memory_mib=budget)


def why(decided: Plan, verb: Verb) -> str:
    return " / ".join(one.reason for one in decided.decisions if one.verb is verb)


# waking


def test_a_sleeper_wakes_for_a_request_rather_than_another_worker_starting() -> None:
    before = scene(sleepy("a", **waiting()), asleep("a", 1, "one"))
    decided = plan(before)
    assert started(before, decided) == []
    assert (decided.residencies, drained(before, decided)) == ({}, set())
    assert "10000 MiB are free on GPU one, waking takes about 2 s" in why(decided, Verb.WAKE)


def test_a_sleeper_holds_its_residue_only_and_its_promise_again_once_it_is_asked_to_wake() -> None:
    other = worker("b", 1, "one", promise=9_000, in_flight=1)
    ends = [sleepy("a", **waiting()), endpoint("b", promise=9_000, in_flight=1)]
    fits = scene(*ends, asleep("a", 1, "one"), other, one=19_000)
    assert plan(fits).residencies == {}
    lacks = scene(*ends, asleep("a", 1, "one"), other, one=18_999)
    assert plan(lacks).residencies == {"a-1": LIGHT}
    told = scene(*ends, asleep("a", 1, "one", asked=Residency.HOT), other, endpoint("c", promise=500, **waiting()))
    assert started(told, plan(told))[0].gpus == ("one",)
    narrow = msgspec.structs.replace(told, cards={**told.cards, "one": 19_499})
    assert started(narrow, plan(narrow)) == []


def test_a_sleeper_counts_with_what_came_back_though_the_memory_shown_is_that_of_a_moment_ago() -> None:
    stale = asleep("b", 1, "one", memory_mib=10_000)
    before = scene(endpoint("a", promise=CARD - 1_000, **waiting()), sleepy("b"), stale)
    assert len(started(before, plan(before))) == 1


def test_a_sleeper_that_cannot_wake_waits_for_its_card_as_long_as_a_start_takes_and_then_another_starts() -> None:
    busy = worker("b", 1, "one", in_flight=1)
    ends = [endpoint("b", in_flight=1), sleepy("a", load_seconds=40, **waiting(since=NOW - 39))]
    before = scene(*ends, asleep("a", 1, "one"), busy, one=15_000, two=CARD)
    decided = plan(before)
    assert started(before, decided) == []
    assert decided.wake_at == NOW + 1
    later = msgspec.structs.replace(before, now=NOW + 1)
    assert started(later, plan(later))[0].gpus == ("two",)
    assert drained(later, plan(later)) == {"a-1"}, "max_workers is one"


def test_who_wakes_first_needs_no_room_that_is_being_made_for_somebody_ahead() -> None:
    leaving = worker("c", 1, "one", in_flight=1, draining=True)
    ends = [
        endpoint("c", in_flight=0),
        endpoint("a", promise=18_000, priority=1, **waiting()),
        sleepy("b", **waiting()),
    ]
    before = scene(*ends, leaving, asleep("b", 1, "one"))
    assert plan(before).residencies == {"b-1": LIGHT}


# falling asleep


def test_an_idle_worker_sleeps_after_idle_seconds_instead_of_going() -> None:
    before = scene(sleepy("a", idle_seconds=100), able("a", 1, "one", last_used=NOW - 100))
    assert plan(before).residencies == {"a-1": LIGHT}
    assert "idle_seconds is 100" in why(plan(before), Verb.SLEEP)


def test_where_all_fit_nobody_sleeps_ahead_of_need_and_where_they_do_not_everybody_does() -> None:
    hot = able("a", 1, "one", last_used=NOW - 60)
    roomy = scene(sleepy("a"), endpoint("b"), hot)
    assert plan(roomy).residencies == {}
    crowded = scene(sleepy("a"), endpoint("b"), endpoint("c"), hot)
    assert plan(crowded).residencies == {"a-1": LIGHT}
    assert "sleep_after_seconds is 60" in why(plan(crowded), Verb.SLEEP)
    early = msgspec.structs.replace(crowded, now=NOW - 1)
    assert (plan(early).residencies, plan(early).wake_at) == ({}, NOW)


def test_the_first_sleep_which_is_the_slow_one_is_taken_as_soon_as_nobody_is_served() -> None:
    fresh = able("a", 1, "one", sleep=None, last_used=NOW - REHEARSE_SECONDS)
    crowded = scene(sleepy("a"), endpoint("b"), endpoint("c"), fresh)
    assert plan(crowded).residencies == {"a-1": LIGHT}


def test_nobody_falls_asleep_with_requests_on_it() -> None:
    busy = able("a", 1, "one", last_used=LONG_AGO, in_flight=1)
    before = scene(sleepy("a", idle_seconds=1, in_flight=1), endpoint("b"), endpoint("c"), busy)
    assert plan(before).residencies == {}


def test_min_workers_and_an_ordered_start_are_kept_awake() -> None:
    hot = able("a", 1, "one", last_used=LONG_AGO)
    assert plan(scene(sleepy("a", min_workers=1), endpoint("b", promise=CARD), hot)).residencies == {}
    assert plan(scene(sleepy("a", warm_until=NOW + 1), endpoint("b", promise=CARD), hot)).residencies == {}


def test_who_cannot_sleep_or_may_not_is_stopped() -> None:
    for ends, known in (
        (sleepy("a"), able("a", 1, "one", can_sleep=False, last_used=LONG_AGO)),
        (endpoint("a"), able("a", 1, "one", last_used=LONG_AGO)),
    ):
        decided = plan(scene(ends, known))
        assert (decided.residencies, decided.desired) == ({}, ())


# budgets


def test_host_memory_bounds_the_sleepers_and_the_longest_unused_gives_way_to_a_later_one() -> None:
    idle = able("a", 1, "one", last_used=NOW - 900, sleep=None)
    full = scene(sleepy("a"), sleepy("b"), idle, asleep("b", 1, "one"), budget=2 * HOST_OF_SLEEPER - 1)
    newer = msgspec.structs.replace(full, workers=(idle, asleep("b", 1, "one", last_used=NOW - 1)))
    assert plan(newer).residencies == {"b-1": LIGHT}, "b was used later: a goes"
    assert drained(newer, plan(newer)) == {"a-1"}
    older = msgspec.structs.replace(full, workers=(idle, asleep("b", 1, "one", last_used=NOW - 901)))
    assert drained(older, plan(older)) == {"b-1"}
    after = carried_out(older, plan(older))
    assert plan(after).residencies == {"a-1": LIGHT}, "once b is gone"


def test_memory_that_the_machine_does_not_have_free_is_not_slept_in() -> None:
    idle = able("a", 1, "one", last_used=LONG_AGO, sleep=None)
    short = msgspec.structs.replace(scene(sleepy("a"), idle), host_available_mib=HOST_OF_SLEEPER - 1)
    assert plan(short).residencies == {}
    enough = msgspec.structs.replace(short, host_available_mib=HOST_OF_SLEEPER)
    assert plan(enough).residencies == {"a-1": LIGHT}


def test_weights_are_dropped_only_where_the_endpoint_opts_in_and_the_engine_can() -> None:
    idle = able("a", 1, "one", last_used=LONG_AGO, can_sleep_deep=True, sleep=None)
    assert plan(scene(sleepy("a", sleep=(LIGHT, DEEP)), idle, budget=0)).residencies == {"a-1": DEEP}
    assert plan(scene(sleepy("a"), idle, budget=0)).residencies == {}
    shallow = msgspec.structs.replace(idle, can_sleep_deep=False)
    assert plan(scene(sleepy("a", sleep=(LIGHT, DEEP)), shallow, budget=0)).residencies == {}


# making room


def test_an_idle_worker_sleeps_to_make_room_if_that_is_as_quick_as_a_stop_and_is_stopped_if_not() -> None:
    ends = [endpoint("a", promise=15_000, **waiting()), sleepy("b")]
    quick = scene(*ends, able("b", 1, "one", last_used=NOW - 1, sleep=QUICK))
    assert plan(quick).residencies == {"b-1": LIGHT}
    for facts in (None, msgspec.structs.replace(SLOW, host_mib=200_000)):
        slow = scene(*ends, able("b", 1, "one", last_used=NOW - 1, sleep=facts), budget=10**6)
        assert (plan(slow).residencies, drained(slow, plan(slow))) == ({}, {"b-1"})


def test_nobody_waits_for_a_sleep_that_takes_longer_than_a_stop() -> None:
    ends = [endpoint("a", promise=15_000, **waiting()), sleepy("b")]
    dozing = able("b", 1, "one", state=WorkerState.SLEEPING, asked=LIGHT, sleep=None, since=NOW - 1)
    before = scene(*ends, dozing)
    assert drained(before, plan(before)) == {"b-1"} or plan(before).desired == ()
    assert "stopping it is quicker" in why(plan(before), Verb.DRAIN)
    nearly = scene(*ends, msgspec.structs.replace(dozing, since=NOW - FIRST_SLEEP_SECONDS + 1))
    assert plan(nearly).residencies == {"b-1": LIGHT}


def test_where_the_residue_of_a_sleeper_would_be_in_the_way_it_is_stopped() -> None:
    ends = [endpoint("a", promise=CARD - RESIDUE_MIB + 600, **waiting()), sleepy("b")]
    before = scene(*ends, able("b", 1, "one", last_used=NOW - 1))
    assert drained(before, plan(before)) == {"b-1"}
    lying = scene(*ends, asleep("b", 1, "one"))
    assert drained(lying, plan(lying)) == {"b-1"}


def test_the_cheapest_to_have_back_makes_room_before_the_longest_unused() -> None:
    ends = [endpoint("a", **waiting()), sleepy("b"), endpoint("c", load_seconds=60)]
    loads = worker("c", 1, "one", last_used=NOW - 100)
    wakes = able("b", 1, "one", last_used=NOW - 50)
    before = scene(*ends, loads, wakes, one=CARD + RESIDUE_MIB)
    assert plan(before).residencies == {"b-1": LIGHT}
    assert "2 s to have it back" in why(plan(before), Verb.SLEEP)


# what goes wrong


def test_a_sleeper_that_died_is_not_desired_any_more() -> None:
    for state in (WorkerState.BACKOFF, WorkerState.FAILED, WorkerState.WAITING, WorkerState.LOADING):
        assert plan(scene(sleepy("a"), asleep("a", 1, "one", state=state))).desired == ()


def test_a_worker_that_was_to_sleep_and_does_not_is_stopped_after_a_while() -> None:
    stubborn = able("a", 1, "one", asked=LIGHT, asked_at=NOW - SLEEP_ORDER_SECONDS)
    before = scene(sleepy("a"), stubborn)
    assert plan(before).residencies == {"a-1": LIGHT}
    assert plan(msgspec.structs.replace(before, now=NOW + 1)).desired == ()
    unable = scene(sleepy("a"), msgspec.structs.replace(stubborn, can_sleep=False))
    assert plan(unable).desired == ()


def test_a_sleeper_of_another_shape_of_a_deleted_or_of_a_stopped_endpoint_goes() -> None:
    lying = asleep("a", 1, "one")
    assert plan(scene(lying)).desired == ()
    assert plan(scene(sleepy("a", stopped=True), lying)).desired == ()
    assert plan(scene(sleepy("a", promise=9_999), lying)).desired == ()
    assert plan(scene(endpoint("a"), lying)).desired == (), "it may sleep no longer"


# fairness between endpoints


def test_who_has_no_worker_goes_before_who_wants_one_more_however_old_its_waiters() -> None:
    many = endpoint("a", promise=15_000, per_worker=1, max_workers=2, in_flight=1, **waiting(since=LONG_AGO))
    none = endpoint("b", promise=15_000, unserved_since=NOW - 1, **waiting(since=NOW - 1))
    before = scene(many, none, worker("a", 1, "one", promise=15_000, in_flight=1), one=CARD, two=CARD)
    assert [spec.endpoint for spec in started(before, plan(before))] == ["b"]


def test_an_overloaded_endpoint_with_a_worker_drains_nobody_to_get_more_than_the_other_has() -> None:
    greedy = endpoint("a", promise=15_000, per_worker=1, max_workers=2, in_flight=1, **waiting(since=LONG_AGO))
    lone = endpoint("b", promise=15_000, in_flight=1)
    workers = [worker("a", 1, "one", promise=15_000, in_flight=1), worker("b", 1, "two", promise=15_000, in_flight=1)]
    before = scene(greedy, lone, *workers, one=CARD, two=CARD)
    assert drained(before, plan(before)) == set()


def test_a_card_is_held_for_a_starving_endpoint_while_those_on_it_stay_their_time() -> None:
    """`a` needs both cards; `b` just came up on one: nobody who came later may take the other meanwhile."""
    workers = [worker("b", 1, "one", promise=15_000, since=NOW - 1, in_flight=1)]
    ends = [
        endpoint("a", gpus=2, promise=15_000, unserved_since=LONG_AGO, **waiting(since=LONG_AGO)),
        endpoint("b", promise=15_000, in_flight=1),
        endpoint("c", promise=15_000, unserved_since=NOW, **waiting()),
    ]
    before = scene(*ends, *workers, one=CARD, two=CARD)
    assert started(before, plan(before)) == []
    assert "is held for it" in why(plan(before), Verb.WAIT)


def test_no_sleeper_that_somebody_waits_for_gives_its_host_memory_away() -> None:
    ends = [sleepy("a"), sleepy("b", promise=CARD, **waiting())]
    idle = able("a", 1, "one", last_used=NOW - 60, since=NOW - 1, sleep=None)
    before = scene(*ends, idle, asleep("b", 1, "one", promise=CARD), budget=HOST_OF_SLEEPER)
    assert "b-1" not in drained(before, plan(before))
