"""What the planner promises over time, on simulated machines: nobody starves, nothing flaps, faults end."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.scheduling.planner import SLEEP_ORDER_LIMIT_SECONDS, SLEEP_ORDER_SECONDS
from gateway.scheduling.types import Plan, Situation
from tests.simulation.bound import Watcher
from tests.simulation.faults import DEADLINES, Faults
from tests.simulation.machine import Machine
from tests.simulation.policies import Lru, Planner, Stopping
from tests.simulation.random_scenarios import scenario
from tests.simulation.report import report
from tests.simulation.search import examine
from tests.simulation.traces import TRACES
from worker_manager.contract import Residency, WorkerState

SCENARIOS = st.integers(0, 10**6)
"""`scripts/simulate --search N` runs more of them; docs/performance.md has what ten thousand showed."""
MOMENT = 1.0


@settings(max_examples=15, deadline=None)
@given(SCENARIOS)
def test_no_endpoint_is_without_a_worker_for_longer_than_the_bound_and_none_is_made_to_leave_early(number: int) -> None:
    found = examine(number)
    assert found.problem == "", "an invariant of the machine: promises, draining workers, busy workers"
    assert found.bound_share <= 1
    assert found.stayed_share >= 1 - 1e-6


class Inspector(Watcher):
    """Looks at every plan that no state has outlived its deadline."""

    machine: Machine

    def decide(self, situation: Situation) -> Plan:
        for state, seconds in self.machine.lasting().items():
            assert seconds <= DEADLINES.get(state, float("inf")) + MOMENT, state
        for worker in situation.workers:
            ordered = worker.state is WorkerState.READY and worker.asked is not Residency.HOT
            if ordered and not worker.in_flight:
                assert situation.now - worker.asked_at <= SLEEP_ORDER_LIMIT_SECONDS + SLEEP_ORDER_SECONDS + MOMENT
        return super().decide(situation)


@settings(max_examples=10, deadline=None)
@given(SCENARIOS)
def test_with_loads_sleeps_and_wakes_that_fail_or_hang_no_state_outlives_its_deadline(number: int) -> None:
    inspector = Inspector()
    inspector.machine = Machine(scenario(number), inspector, Faults())
    inspector.machine.run()


@settings(max_examples=5, deadline=None)
@given(SCENARIOS)
@example(4429)  # in this one and the next nothing happens any more but that an engine does not fall asleep
@example(10062)
def test_whatever_fails_meanwhile_every_request_is_served_in_the_end(number: int) -> None:
    made = scenario(number)
    machine = Machine(made, Planner(), Faults())
    served = machine.run(patience=40_000)
    assert served.unserved == 0


def test_on_mixed_traffic_one_in_a_hundred_waits_less_than_half_as_long_as_with_lru() -> None:
    traffic = TRACES["mixed"](1, 0.6)
    ours, theirs = (report("mixed", policy.name, Machine(traffic, policy).run()) for policy in (Planner(), Lru()))
    assert ours.p99 <= theirs.p99 / 2
    assert ours.starts_an_hour < theirs.starts_an_hour


def test_engines_that_cannot_sleep_are_swapped_no_more_often_than_the_minimum_residency_lets_them() -> None:
    traffic = TRACES["pingpong"](1, 0.1)
    served = Machine(traffic, Stopping()).run()
    assert min(served.stays) >= traffic.minimum_residency_seconds
    hours = served.seconds / 3600
    cards = len(traffic.cards) - 1
    assert len(served.loads) <= hours * cards * 3600 / (traffic.minimum_residency_seconds + 45) + cards
