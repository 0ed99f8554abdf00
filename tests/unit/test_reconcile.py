from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_manager import actions as act
from worker_manager import deadlines, room, steps
from worker_manager import reconcile as rules
from worker_manager import tracked as life
from worker_manager.contract import (
    DesiredSet,
    Failure,
    FailureKind,
    Gpu,
    GpuUse,
    Residency,
    SleepFacts,
    WorkerSpec,
    WorkerState,
    spec_hash,
)
from worker_manager.engines.last_words import PERMANENT_KINDS
from worker_manager.launchers.base import Unit, UnitKind

NOW = 1_000_000.0
LIMITS = deadlines.Limits(load_seconds=100)
ENDPOINTS = ("a", "b", "c")


def spec(worker: str = "w1", **change: object) -> WorkerSpec:
    base = WorkerSpec(id=worker, endpoint="tiny", model="local/tiny", served_names=("tiny",))
    return msgspec.structs.replace(base, **change)


def desired(*specs: WorkerSpec, **residencies: Residency) -> DesiredSet:
    return DesiredSet(generation=1, workers=specs, residencies=residencies)


def unit(of: WorkerSpec, *, running: bool = True, never_started: bool = False) -> Unit:
    return Unit(id=of.id, kind=UnitKind.WORKER, running=running, never_started=never_started, created_at=NOW, worker=of)


def tracked(of: WorkerSpec, state: WorkerState, **change: object) -> life.Tracked:
    known = life.entered(life.fresh(of, NOW), state, NOW)
    return msgspec.structs.replace(known, **change)


def failure(kind: FailureKind = FailureKind.UNKNOWN) -> Failure:
    return Failure(kind=kind, message="it broke", hint="mend it", at=NOW)


def card(uuid: str = "GPU-0", total: int = 1000, used: int = 0, foreign: int = 0) -> Gpu:
    return Gpu(
        index=0,
        uuid=uuid,
        name="card",
        memory_total_mib=total,
        memory_used_mib=used,
        memory_foreign_mib=foreign,
    )


def decide(
    wanted: DesiredSet | None,
    known: dict[str, life.Tracked] | None = None,
    found: list[Unit] | None = None,
    *,
    gpus: tuple[Gpu, ...] = (),
    busy: frozenset[str] = frozenset(),
    now: float = NOW,
) -> list[act.Action]:
    units = {each.id: each for each in found or []}
    return rules.reconcile(wanted, known or {}, units, busy=busy, gpus=gpus, limits=LIMITS, now=now)


def test_a_unit_that_was_made_for_another_description_is_stopped() -> None:
    new, old = spec(max_model_len=64), spec()
    assert isinstance(decide(desired(new), {"w1": tracked(new, WorkerState.READY)}, [unit(old)])[0], act.Stop)


def test_a_desired_worker_is_tracked_and_then_started() -> None:
    wanted = spec()
    assert decide(desired(wanted)) == [act.Track("w1", wanted)]
    assert decide(desired(wanted), {"w1": life.fresh(wanted, NOW)}) == [act.Start("w1", wanted)]


def test_without_a_desired_set_a_found_unit_is_adopted_and_nothing_is_removed() -> None:
    found = spec()
    assert decide(None, {}, [unit(found)]) == [act.Adopt("w1", found, running=True)]
    assert decide(None, {"w1": tracked(found, WorkerState.READY)}, [unit(found)]) == []


def test_a_worker_that_dies_before_the_desired_set_came_is_no_longer_shown_as_serving() -> None:
    found = spec()
    actions = decide(None, {"w1": tracked(found, WorkerState.READY)}, [unit(found, running=False)])
    assert actions == [act.Adopt("w1", found, running=False)]


def test_an_unknown_unit_is_stopped_once_the_desired_set_came() -> None:
    found = spec("stray")
    assert decide(desired(), {"stray": tracked(found, WorkerState.READY)}, [unit(found)]) == [
        act.Stop("stray", "no longer desired")
    ]


def test_a_running_worker_that_is_still_desired_is_left_alone() -> None:
    wanted = spec()
    assert decide(desired(wanted), {"w1": tracked(wanted, WorkerState.READY)}, [unit(wanted)]) == []


def test_a_changed_spec_stops_the_old_worker_before_the_new_one_starts() -> None:
    old, new = spec(), spec(max_model_len=64)
    assert isinstance(decide(desired(new), {"w1": tracked(old, WorkerState.READY)}, [unit(old)])[0], act.Stop)
    assert decide(desired(new), {"w1": tracked(old, WorkerState.STOPPING)}) == [act.Track("w1", new)]


def test_a_changed_spec_frees_a_failed_worker() -> None:
    old, new = spec(), spec(max_model_len=64)
    assert decide(desired(old), {"w1": tracked(old, WorkerState.FAILED)}) == []
    assert decide(desired(new), {"w1": tracked(old, WorkerState.FAILED)}) == [act.Track("w1", new)]


def test_a_dead_worker_is_collected_and_a_vanished_one_counts_as_killed() -> None:
    wanted = spec()
    dead = unit(wanted, running=False)
    assert decide(desired(wanted), {"w1": tracked(wanted, WorkerState.READY)}, [dead]) == [
        act.Collect("w1", None, dead)
    ]
    vanished = decide(desired(wanted), {"w1": tracked(wanted, WorkerState.READY)})[0]
    assert isinstance(vanished, act.Collect)
    assert vanished.failure is not None
    assert vanished.failure.kind is FailureKind.KILLED


def test_a_container_that_was_created_and_never_started_is_replaced_without_counting_a_death() -> None:
    wanted = spec()
    half = unit(wanted, running=False, never_started=True)
    actions = decide(desired(wanted), {"w1": tracked(wanted, WorkerState.BACKOFF)}, [half])
    assert actions == [act.Stop("w1", "its start was not finished")]


def test_a_worker_that_loads_too_long_is_given_up() -> None:
    wanted = spec()
    known = {"w1": tracked(wanted, WorkerState.LOADING)}
    assert decide(desired(wanted), known, [unit(wanted)], now=NOW + 99) == []
    late = decide(desired(wanted), known, [unit(wanted)], now=NOW + 101)[0]
    assert isinstance(late, act.Collect)
    assert late.failure is not None
    assert late.failure.kind is FailureKind.LOAD_TIMEOUT


def test_an_adopted_worker_that_was_started_long_ago_has_a_minute_to_answer() -> None:
    wanted = spec()
    old = msgspec.structs.replace(unit(wanted), created_at=NOW - 5000)
    known = {"w1": life.adopted(wanted, None, NOW, running=True)}
    assert decide(desired(wanted), known, [old], now=NOW + 59) == []
    assert isinstance(decide(desired(wanted), known, [old], now=NOW + 61)[0], act.Collect)


def test_nothing_is_decided_for_a_worker_with_an_action_under_way() -> None:
    wanted = spec()
    assert decide(desired(wanted), {}, [], busy=frozenset({"w1"})) == []


def test_a_back_off_is_waited_for() -> None:
    wanted = spec()
    known = {"w1": tracked(wanted, WorkerState.BACKOFF, retry_at=NOW + 5)}
    assert decide(desired(wanted), known, now=NOW + 4) == []
    assert decide(desired(wanted), known, now=NOW + 5) == [act.Start("w1", wanted)]


def test_a_start_waits_for_gpu_memory_with_a_reason_and_fails_after_its_deadline() -> None:
    wanted = spec(gpus=("GPU-0",), gpu_memory_mib=800)
    full = (card(used=500, foreign=500),)
    waits = decide(desired(wanted), {"w1": life.fresh(wanted, NOW)}, gpus=full)[0]
    assert isinstance(waits, act.Wait)
    assert "GPU-0 has 500 MiB free, 800 MiB are needed" in waits.reason
    waiting = {"w1": life.entered(life.fresh(wanted, NOW), WorkerState.WAITING, NOW, waits.reason)}
    assert decide(desired(wanted), waiting, gpus=full, now=NOW + 59) == []
    given_up = decide(desired(wanted), waiting, gpus=full, now=NOW + 61)[0]
    assert isinstance(given_up, act.GiveUp)
    assert given_up.failure.kind is FailureKind.OUT_OF_MEMORY_AT_LOAD
    assert decide(desired(wanted), waiting, gpus=(card(),), now=NOW + 59) == [act.Start("w1", wanted)]


def test_a_worker_that_still_loads_has_its_promise_already() -> None:
    loading = spec("w0", gpus=("GPU-0",), gpu_memory_mib=600)
    wanted = spec("w1", gpus=("GPU-0",), gpu_memory_mib=600)
    known = {"w0": tracked(loading, WorkerState.LOADING), "w1": life.fresh(wanted, NOW)}
    actions = decide(desired(loading, wanted), known, [unit(loading)], gpus=(card(used=10),))
    assert [type(action) for action in actions] == [act.Wait]


def test_two_starts_of_one_pass_do_not_share_memory() -> None:
    first = spec("w0", gpus=("GPU-0",), gpu_memory_mib=600)
    second = spec("w1", gpus=("GPU-0",), gpu_memory_mib=600)
    known = {"w0": life.fresh(first, NOW), "w1": life.fresh(second, NOW)}
    actions = decide(desired(first, second), known, gpus=(card(),))
    assert [type(action) for action in actions] == [act.Start, act.Wait]


@pytest.mark.parametrize(("deaths", "base"), [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 300), (40, 300)])
def test_the_back_off_doubles_from_ten_seconds_to_five_minutes_give_or_take_a_tenth(deaths: int, base: float) -> None:
    delay = life.backoff_seconds("w1", deaths)
    assert base * 0.9 <= delay <= base * 1.1
    assert delay == life.backoff_seconds("w1", deaths)


def test_an_engine_that_served_until_it_was_killed_comes_back_at_once_but_only_the_first_time() -> None:
    killed = failure(FailureKind.KILLED)
    once = life.died(tracked(spec(), WorkerState.READY), killed, NOW, ready_seconds=5)
    assert (once.state, once.retry_at) == (WorkerState.BACKOFF, NOW)
    again = life.died(once, killed, NOW, ready_seconds=5)
    assert again.retry_at is not None
    assert again.retry_at > NOW + 10
    while_loading = life.died(tracked(spec(), WorkerState.LOADING), killed, NOW)
    assert while_loading.retry_at is not None
    assert while_loading.retry_at > NOW + 5


def test_workers_do_not_all_come_back_at_the_same_instant() -> None:
    assert len({life.backoff_seconds(f"w{number}", 1) for number in range(20)}) == 20


def test_the_fifth_death_within_half_an_hour_is_the_last() -> None:
    known, now = tracked(spec(), WorkerState.READY), NOW
    for count in range(1, 6):
        known = life.died(known, failure(), now)
        expected = WorkerState.FAILED if count == 5 else WorkerState.BACKOFF
        assert known.state is expected
        now += 100


def test_deaths_are_forgotten_after_half_an_hour_and_after_ten_healthy_minutes() -> None:
    known = tracked(spec(), WorkerState.READY, deaths=(NOW - 1801, NOW - 1000, NOW - 900))
    assert len(life.died(known, failure(), NOW).deaths) == 3
    assert len(life.died(known, failure(), NOW, ready_seconds=601).deaths) == 1


@pytest.mark.parametrize("kind", FailureKind)
def test_a_failure_that_would_come_again_is_final_at_once_and_says_why(kind: FailureKind) -> None:
    first = life.died(tracked(spec(), WorkerState.LOADING), failure(kind), NOW)
    assert (first.state is WorkerState.FAILED) == (kind in PERMANENT_KINDS)
    assert first.failure == failure(kind)
    assert "it broke" in first.reason or kind in life.RECYCLED_KINDS
    served = life.died(tracked(spec(), WorkerState.READY), failure(kind), NOW, ready_seconds=5)
    assert served.state is not WorkerState.FAILED


def too_long(fits: int = 10_000) -> Failure:
    said = f"ValueError: ... Based on the available memory, the estimated maximum model length is {fits}. Try ..."
    return msgspec.structs.replace(failure(FailureKind.KV_CACHE_TOO_SMALL), log_tail=("INFO", said, "Traceback", ""))


@pytest.mark.parametrize("change", [{}, {"max_model_len": 40_000, "is_length_chosen": True}])
def test_a_context_that_nobody_asked_for_and_that_does_not_fit_is_shortened_once(change: dict[str, Any]) -> None:
    once = life.died(tracked(spec(**change), WorkerState.LOADING), too_long(), NOW)
    assert (once.state, once.retry_at, once.shortened) == (WorkerState.BACKOFF, NOW, 9792)
    assert "9792" in once.reason
    assert once.spec_hash == spec_hash(spec(**change))
    ready = life.observed(life.entered(once, WorkerState.READY, NOW), None, None)
    assert "max_model_len was lowered to 9792" in ready.reason
    again = life.died(life.entered(once, WorkerState.LOADING, NOW), too_long(9000), NOW)
    assert (again.state, again.shortened) == (WorkerState.FAILED, 9792)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"max_model_len": 40_000}, too_long()),
        ({}, too_long(900)),
        ({}, failure(FailureKind.KV_CACHE_TOO_SMALL)),
        ({}, msgspec.structs.replace(too_long(), kind=FailureKind.BAD_FLAG)),
    ],
    ids=["a length that was asked for", "too little to be of use", "nothing said of what fits", "another failure"],
)
def test_no_other_context_is_shortened(change: dict[str, Any], why: Failure) -> None:
    known = life.died(tracked(spec(**change), WorkerState.LOADING), why, NOW)
    assert (known.state, known.shortened) == (WorkerState.FAILED, None)


def test_a_unit_that_cannot_be_removed_is_tried_again_with_what_is_known_of_its_death() -> None:
    wanted, why = spec(), failure(FailureKind.HUNG)
    found = unit(wanted)
    served = tracked(wanted, WorkerState.READY, condemned=why)
    dead = steps.begun(act.Collect("w1", why, found), served, NOW + 7)
    assert dead is not None
    assert (dead.state, dead.served, dead.since) == (WorkerState.WAITING, 7, NOW + 7)
    for units in ([found], [unit(wanted, running=False)], []):
        (again,) = decide(desired(wanted), {"w1": dead}, units, now=NOW + 30)
        assert isinstance(again, act.Collect)
        assert again.failure == why
        later = steps.begun(again, dead, NOW + 30)
        assert later is not None
        assert (later.served, later.since, later.reason) == (7, NOW + 7, "died: its log is read")
    after = life.died(dead, why, NOW + 40, 7)
    assert (after.state, after.retry_at, after.served) == (WorkerState.BACKOFF, NOW + 40, None)


def test_a_stop_that_failed_keeps_the_reason_of_its_failure() -> None:
    stopping = tracked(spec(), WorkerState.STOPPING, reason="can't be stopped yet: Docker is away")
    again = steps.begun(act.Stop("w1", "a stop before did not succeed"), stopping, NOW + 5)
    assert again == stopping


def test_an_engine_that_cannot_be_made_and_nobody_says_why_is_given_up_after_its_deadline() -> None:
    wanted = spec()
    known = {"w1": tracked(wanted, WorkerState.CREATING)}
    assert decide(desired(wanted), known, now=NOW + 119) == [act.Start("w1", wanted)]
    (given_up,) = decide(desired(wanted), known, now=NOW + 121)
    assert isinstance(given_up, act.GiveUp)
    assert given_up.failure.kind is FailureKind.LAUNCH_FAILED


def test_a_worker_that_waited_asleep_has_its_whole_time_to_wait_for_memory_once_it_is_wanted() -> None:
    wanted = on_card()
    waiting = life.entered(life.fresh(wanted, NOW), WorkerState.WAITING, NOW, life.ASLEEP_IS_WANTED)
    (wait,) = decide(desired(wanted), {"w1": waiting}, gpus=(card(used=900, foreign=900),), now=NOW + 600)
    assert isinstance(wait, act.Wait)


def test_a_shorter_context_is_remembered_by_the_unit_and_for_the_next_worker_like_it() -> None:
    wanted = spec()
    found = msgspec.structs.replace(unit(wanted), length=4000)
    (adopt,) = decide(None, {}, [found])
    known = steps.begun(adopt, None, NOW)
    assert known is not None
    assert known.shortened == 4000
    lengths = life.remembered({}, known)
    other, another = spec("w2"), spec("w3", max_model_len=64)
    next_one, different = (steps.begun(act.Track(one.id, one), None, NOW, lengths) for one in (other, another))
    assert (next_one and next_one.shortened, different and different.shortened) == (4000, None)
    in_vain = life.died(life.entered(known, WorkerState.LOADING, NOW), too_long(), NOW)
    assert in_vain.state is WorkerState.FAILED
    assert life.remembered(lengths, in_vain) == {}


def test_a_launcher_that_does_not_answer_costs_no_death() -> None:
    known = life.postponed(tracked(spec(), WorkerState.CREATING), NOW, "Docker is away")
    assert (known.state, known.deaths, known.retry_at) == (WorkerState.BACKOFF, (), NOW + 5)


# any world


# sleep


def on_card(worker: str = "w1") -> WorkerSpec:
    return spec(worker, gpus=("GPU-0",), gpu_memory_mib=700)


def able(of: WorkerSpec, state: WorkerState, **change: object) -> life.Tracked:
    return tracked(of, state, **{"no_sleep": "", "no_deep_sleep": "", **change})


def test_only_a_ready_worker_that_can_is_told_to_sleep_and_at_the_level_that_is_wanted() -> None:
    wanted = spec()
    for level in (Residency.ASLEEP_1, Residency.ASLEEP_2):
        known = {"w1": able(wanted, WorkerState.READY)}
        assert decide(desired(wanted, w1=level), known, [unit(wanted)]) == [act.Sleep("w1", level)]
    sleep = desired(wanted, w1=Residency.ASLEEP_1)
    assert decide(sleep, {"w1": able(wanted, WorkerState.LOADING)}, [unit(wanted)]) == []
    assert decide(sleep, {"w1": able(wanted, WorkerState.READY, no_sleep=None)}, [unit(wanted)]) == []
    refused = {"w1": able(wanted, WorkerState.READY, no_sleep="it is too old")}
    assert decide(sleep, refused, [unit(wanted)]) == [act.Hold("w1", "it can't sleep: it is too old")]


def test_one_that_was_busy_is_tried_again_after_a_moment() -> None:
    wanted = spec()
    sleep = desired(wanted, w1=Residency.ASLEEP_1)
    known = {"w1": life.busy(able(wanted, WorkerState.SLEEPING), NOW, "2 requests still run")}
    assert decide(sleep, known, [unit(wanted)], now=NOW + 4) == []
    assert decide(sleep, known, [unit(wanted)], now=NOW + 5) == [act.Sleep("w1", Residency.ASLEEP_1)]
    assert decide(desired(wanted), known, [unit(wanted)], now=NOW + 5) == [act.Hold("w1", "")]


def test_where_nvml_does_not_tell_whose_memory_it_is_a_sleeper_of_a_whole_card_wakes_all_the_same() -> None:
    wanted = spec(gpus=("GPU-0",), gpu_memory_mib=20_000)
    known = {"w1": able(wanted, WorkerState.ASLEEP)}
    rest, other = card(total=20_500, used=1300), card(total=20_500, used=6300)
    assert decide(desired(wanted), known, [unit(wanted)], gpus=(rest,)) == [act.Wake("w1")]
    assert isinstance(decide(desired(wanted), known, [unit(wanted)], gpus=(other,))[0], act.Hold)


def test_a_sleeper_is_left_asleep_wakes_when_it_is_wanted_hot_and_stops_when_it_is_not_wanted() -> None:
    wanted = spec()
    known = {"w1": able(wanted, WorkerState.ASLEEP, level=Residency.ASLEEP_1)}
    assert decide(desired(wanted, w1=Residency.ASLEEP_1), known, [unit(wanted)]) == []
    assert decide(desired(wanted, w1=Residency.ASLEEP_2), known, [unit(wanted)]) == []
    assert decide(None, known, [unit(wanted)]) == []
    assert decide(desired(wanted), known, [unit(wanted)]) == [act.Wake("w1")]
    assert isinstance(decide(desired(), known, [unit(wanted)])[0], act.Stop)


def test_a_sleeper_that_lacks_memory_says_so_and_is_replaced_when_that_does_not_end() -> None:
    wanted = on_card()
    known = {"w1": able(wanted, WorkerState.ASLEEP)}
    full = card(used=900, foreign=800)
    full = msgspec.structs.replace(full, users=(GpuUse(pid=1, memory_mib=100, worker="w1"),))
    hold = decide(desired(wanted), known, [unit(wanted)], gpus=(full,))[0]
    assert isinstance(hold, act.Hold)
    assert "100 MiB free, 600 MiB are needed" in hold.reason
    blocked = {"w1": life.held(known["w1"], NOW, hold.reason, blocked=True)}
    assert decide(desired(wanted), blocked, [unit(wanted)], gpus=(full,), now=NOW + 59) == []
    assert isinstance(decide(desired(wanted), blocked, [unit(wanted)], gpus=(full,), now=NOW + 61)[0], act.Collect)
    assert deadlines.next_one(blocked, LIMITS, NOW) == NOW + 60


def test_a_sleeper_counts_for_what_it_holds_and_two_never_wake_into_the_same_memory() -> None:
    sleepers = [on_card(name) for name in ("w1", "w2")]
    known = {each.id: able(each, WorkerState.ASLEEP) for each in sleepers}
    users = tuple(GpuUse(pid=number, memory_mib=50, worker=each.id) for number, each in enumerate(sleepers))
    gpu = msgspec.structs.replace(card(used=100), users=users)
    units = [unit(each) for each in sleepers]
    other = spec("w3", gpus=("GPU-0",), gpu_memory_mib=900)
    asleep = {each.id: Residency.ASLEEP_1 for each in sleepers}
    assert decide(desired(*sleepers, other, **asleep), {**known, "w3": life.fresh(other, NOW)}, units, gpus=(gpu,)) == [
        act.Start("w3", other)
    ]
    found = decide(desired(*sleepers), known, units, gpus=(gpu,))
    assert [type(action) for action in found] == [act.Wake, act.Hold]


@pytest.mark.parametrize("state", [WorkerState.CREATING, WorkerState.LOADING])
def test_nobody_sleeps_or_wakes_on_a_card_on_which_another_engine_loads(state: WorkerState) -> None:
    """VLLM measures while it loads, and gives up where memory comes back meanwhile."""
    one, other = spec("w1", gpus=("GPU-0",)), spec("w2", gpus=("GPU-0",))
    units = [unit(one), unit(other)]
    loading = {"w2": tracked(other, state)}
    for known, wanted in (
        (able(one, WorkerState.READY), desired(one, other, w1=Residency.ASLEEP_1)),
        (able(one, WorkerState.ASLEEP), desired(one, other)),
    ):
        (hold,) = decide(wanted, {"w1": known, **loading}, units, gpus=(card(),), busy=frozenset({"w2"}))
        assert hold == act.Hold("w1", "waits for its turn: w2 loads on the same GPU")
        held = life.held(known, NOW, "waits for its turn: w2 loads on the same GPU", blocked=False)
        assert decide(wanted, {"w1": held, **loading}, units, gpus=(card(),), busy=frozenset({"w2"})) == []
    moving = {"w1": able(one, WorkerState.WAKING), "w2": life.fresh(other, NOW)}
    (wait,) = decide(desired(one, other), moving, [unit(one)], gpus=(card(),), busy=frozenset({"w1"}))
    assert isinstance(wait, act.Wait)


def test_nothing_is_started_in_order_to_sleep() -> None:
    wanted = spec()
    sleep = desired(wanted, w1=Residency.ASLEEP_1)
    (wait,) = decide(sleep, {"w1": life.fresh(wanted, NOW)})
    assert isinstance(wait, act.Wait)
    waiting = {"w1": life.entered(life.fresh(wanted, NOW), WorkerState.WAITING, NOW, wait.reason)}
    assert decide(sleep, waiting, now=NOW + 600) == []
    assert deadlines.next_one(waiting, LIMITS, NOW + 600) is None
    assert decide(desired(wanted), waiting, now=NOW + 600) == [act.Start("w1", wanted)]


@pytest.mark.parametrize(
    ("state", "kind"),
    [(WorkerState.SLEEPING, FailureKind.SLEEP_FAILED), (WorkerState.WAKING, FailureKind.WAKE_FAILED)],
)
def test_a_way_that_nobody_goes_any_more_ends_the_engine_without_a_death(state: WorkerState, kind: FailureKind) -> None:
    wanted = spec()
    (collect,) = decide(desired(wanted), {"w1": able(wanted, state)}, [unit(wanted)])
    assert isinstance(collect, act.Collect)
    assert collect.failure is not None
    assert collect.failure.kind is kind
    anew = life.died(able(wanted, state), collect.failure, NOW)
    assert (anew.state, anew.deaths, anew.failure) == (WorkerState.WAITING, (), collect.failure)


def test_what_is_condemned_is_replaced_with_its_reason() -> None:
    wanted, why = spec(), failure(FailureKind.HUNG)
    known = {"w1": life.condemned(tracked(wanted, WorkerState.READY), why)}
    found = unit(wanted)
    assert decide(desired(wanted), known, [found]) == [act.Collect("w1", why, found)]
    assert decide(None, known, [found]) == []
    assert life.entered(known["w1"], WorkerState.WAITING, NOW).condemned is None


specs = st.builds(
    spec,
    st.sampled_from(ENDPOINTS),
    max_model_len=st.sampled_from([None, 64]),
    gpus=st.sampled_from([(), ("GPU-0",), ("GPU-0", "GPU-1")]),
    gpu_memory_mib=st.sampled_from([300, 700]),
)
states = st.sampled_from(list(WorkerState))
WARM = [Residency.HOT, Residency.ASLEEP_1, Residency.ASLEEP_2]


def by_id(values: list[WorkerSpec]) -> tuple[WorkerSpec, ...]:
    return tuple({each.id: each for each in values}.values())


@st.composite
def worlds(draw: st.DrawFn) -> tuple[DesiredSet | None, dict[str, life.Tracked], list[Unit]]:
    warmth = draw(st.dictionaries(st.sampled_from(ENDPOINTS), st.sampled_from(WARM)))
    wanted = draw(st.none() | st.lists(specs, max_size=3).map(lambda values: desired(*by_id(values), **warmth)))
    known = {
        each.id: tracked(
            each,
            draw(states),
            since=NOW - draw(st.sampled_from([0, 50, 500])),
            level=draw(st.sampled_from([Residency.ASLEEP_1, Residency.ASLEEP_2])),
            no_sleep=draw(st.sampled_from([None, "", "it can't"])),
            condemned=draw(st.sampled_from([None, None, failure(FailureKind.HUNG)])),
        )
        for each in by_id(draw(st.lists(specs, max_size=3)))
    }
    found = [unit(each, running=draw(st.booleans())) for each in by_id(draw(st.lists(specs, max_size=3)))]
    return wanted, known, found


@given(worlds())
def test_one_action_per_worker_and_no_removal_without_a_desired_set(
    world: tuple[DesiredSet | None, dict[str, life.Tracked], list[Unit]],
) -> None:
    wanted, known, found = world
    actions = decide(wanted, known, found, gpus=(card(), card("GPU-1")))
    assert len({action.id for action in actions}) == len(actions)
    if wanted is None:
        assert {type(action) for action in actions} <= {act.Adopt, act.Forget}


@given(worlds())
def test_starts_never_promise_more_than_the_card_has(
    world: tuple[DesiredSet | None, dict[str, life.Tracked], list[Unit]],
) -> None:
    wanted, known, found = world
    gpus = (card(), card("GPU-1"))
    starts = [action.spec for action in decide(wanted, known, found, gpus=gpus) if isinstance(action, act.Start)]
    live = room.live_specs(known, {each.id: each for each in found})
    for gpu in gpus:
        promised = sum(each.gpu_memory_mib or 0 for each in [*live, *starts] if gpu.uuid in each.gpus)
        before = sum(each.gpu_memory_mib or 0 for each in live if gpu.uuid in each.gpus)
        assert promised == before or promised <= gpu.memory_total_mib + len(starts) * room.GPU_MARGIN_MIB


@given(worlds())
def test_every_world_comes_to_rest_at_the_desired_set(
    world: tuple[DesiredSet | None, dict[str, life.Tracked], list[Unit]],
) -> None:
    """Actions are done as the supervisor does them, all successful; a dozen passes must be enough."""
    wanted, known, found = world
    known, units, now = dict(known), {each.id: each for each in found}, NOW
    for _ in range(12):
        actions = rules.reconcile(wanted, known, units, busy=frozenset(), gpus=(), limits=LIMITS, now=now)
        for action in actions:
            carry_out(action, known, units, now)
        now += 20
    if wanted is None:
        return
    hashes = {each.id: spec_hash(each) for each in wanted.workers}
    hot = {id_ for id_ in hashes if wanted.residencies.get(id_, Residency.HOT) is Residency.HOT}
    given_up = {id_ for id_, each in known.items() if each.state is WorkerState.FAILED}
    running = {id_: spec_hash(each.worker) for id_, each in units.items() if each.worker}
    assert running.items() <= hashes.items()
    assert hot - given_up <= running.keys()
    for worker in running:
        state = known[worker].state
        if worker in hot or known[worker].no_sleep:
            assert state in (WorkerState.READY, WorkerState.LOADING, WorkerState.ASLEEP)
            assert worker not in hot or state is not WorkerState.ASLEEP
        else:
            assert state in (WorkerState.ASLEEP, WorkerState.LOADING) or known[worker].no_sleep is None
    assert known.keys() == hashes.keys()


def carry_out(action: act.Action, known: dict[str, life.Tracked], units: dict[str, Unit], now: float) -> None:
    match action:
        case act.Adopt(id=worker, spec=of, running=running):
            known[worker] = life.adopted(of, known.get(worker), now, running=running)
        case act.Track(id=worker, spec=of):
            known[worker] = life.fresh(of, now)
        case act.Start(id=worker, spec=of):
            known[worker] = life.entered(known[worker], WorkerState.READY, now)
            units[worker] = unit(of)
        case act.Wait(id=worker, reason=reason):
            known[worker] = life.entered(known[worker], WorkerState.WAITING, now, reason)
        case act.GiveUp(id=worker, failure=why):
            known[worker] = life.failed(known[worker], why, now)
        case act.Collect(id=worker, failure=why):
            units.pop(worker, None)
            known[worker] = life.died(known[worker], why or failure(), now)
        case act.Stop(id=worker):
            units.pop(worker, None)
            known.pop(worker, None)
        case act.Forget(id=worker):
            known.pop(worker, None)
        case _:
            carry_out_warmth(action, known, now)


def carry_out_warmth(action: act.Action, known: dict[str, life.Tracked], now: float) -> None:
    match action:
        case act.Sleep(id=worker, level=level):
            assert known[worker].state is WorkerState.READY
            known[worker] = life.asleep(known[worker], level, SleepFacts(), now)
        case act.Wake(id=worker):
            assert known[worker].state is WorkerState.ASLEEP
            known[worker] = life.entered(known[worker], WorkerState.READY, now)
        case act.Hold(id=worker, reason=reason, blocked=blocked):
            known[worker] = life.held(known[worker], now, reason, blocked=blocked)


def test_one_engine_at_a_time_loads_on_a_card_however_long_that_takes() -> None:
    """An engine takes the memory that others take while it looks for its own to be its own."""
    loading = spec("w0", gpus=("GPU-0",), gpu_memory_mib=400)
    wanted = spec("w1", gpus=("GPU-0",), gpu_memory_mib=400)
    elsewhere = spec("w2", gpus=("GPU-1",), gpu_memory_mib=400)
    cards = (card(), msgspec.structs.replace(card(), uuid="GPU-1"))
    known = {"w0": tracked(loading, WorkerState.LOADING)}
    known |= {one.id: life.fresh(one, NOW) for one in (wanted, elsewhere)}
    waits, starts = decide(desired(loading, wanted, elsewhere), known, [unit(loading)], gpus=cards)
    assert isinstance(waits, act.Wait)
    assert "w0 loads on the same GPU" in waits.reason
    assert starts == act.Start("w2", elsewhere)
    known = {
        "w0": tracked(loading, WorkerState.LOADING),
        "w1": life.entered(known["w1"], WorkerState.WAITING, NOW, waits.reason),
    }
    later = msgspec.structs.replace(unit(loading), created_at=NOW + 90)
    assert decide(desired(loading, wanted), known, [later], gpus=cards, now=NOW + 99) == []
    assert deadlines.next_one({"w1": known["w1"]}, LIMITS, NOW) is None
    known["w0"] = tracked(loading, WorkerState.READY)
    assert decide(desired(loading, wanted), known, [later], gpus=cards, now=NOW + 99) == [act.Start("w1", wanted)]
    full = (card(used=900, foreign=900),)
    lacking = decide(desired(loading, wanted), known, [later], gpus=full, now=NOW + 99)[0]
    assert isinstance(lacking, act.Wait)
    assert life.entered(known["w1"], WorkerState.WAITING, NOW + 99, lacking.reason).since == NOW + 99
