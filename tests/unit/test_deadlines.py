"""No state of a worker outlives its deadline, whatever takes long, fails or hangs: the rules in simulated time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.played_manager import LIMITS, Watch, World, spec
from worker_manager import deadlines
from worker_manager import tracked as life
from worker_manager.contract import WorkerState

SECONDS = 1500.0
CALM_SECONDS = 2500.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9))
def test_no_state_outlives_its_deadline_and_once_all_is_well_every_worker_serves(seed: int) -> None:
    world = World(seed)
    watch = Watch(world)
    world.run(SECONDS, watch)
    world.calm = True
    world.desired = None  # all wishes anew
    world.run(CALM_SECONDS, watch)
    rest = {known.state for known in world.known.values()}
    assert rest <= {WorkerState.READY, WorkerState.FAILED}
    assert len(world.known) == len(world.specs)


def test_all_states_are_met_on_the_way() -> None:
    seen: set[WorkerState] = set()
    for seed in range(4):
        watch = Watch(World(seed))
        watch.world.run(SECONDS, watch)
        seen |= watch.seen
    assert seen == set(WorkerState)


@pytest.mark.parametrize("state", WorkerState)
def test_every_state_has_a_deadline_but_those_that_may_last(state: WorkerState) -> None:
    known = life.entered(life.fresh(spec(0), 0.0), state, 0.0)
    assert (deadlines.of(known, LIMITS) is None) == (state in deadlines.REST)


def test_a_wait_for_others_has_none_and_what_is_waited_for_after_it_starts_afresh() -> None:
    fresh = life.fresh(spec(0), 0.0)
    for reason in (f"{life.TURN}: w1 loads on the same GPU", life.ASLEEP_IS_WANTED):
        waits = life.entered(fresh, WorkerState.WAITING, 5.0, reason)
        assert deadlines.of(waits, LIMITS) is None
        after = life.entered(waits, WorkerState.WAITING, 500.0, "GPU-0 has 1 MiB free, 2 MiB are needed")
        assert deadlines.of(after, LIMITS) == 500.0 + deadlines.WAITING_SECONDS
