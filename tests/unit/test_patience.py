"""Since when an endpoint has been without a worker: what the starvation bound counts from."""

from gateway.scheduling.patience import Patience
from tests.support.planning import endpoint, waiting, worker
from worker_manager.contract import Residency, WorkerState

LOADING, HOT = worker("a", 1, "one", state=WorkerState.LOADING), worker("a", 1, "one")


def test_the_clock_runs_from_the_first_waiter_until_a_worker_is_ready() -> None:
    patience = Patience()
    assert patience.look(10.0, [endpoint("a", **waiting(since=7.0))], []) == {"a": 7.0}
    assert patience.look(12.0, [endpoint("a", **waiting(since=7.0))], [LOADING]) == {"a": 7.0}
    assert patience.look(14.0, [endpoint("a", **waiting(since=7.0))], [HOT]) == {}


def test_a_waiter_that_gives_up_does_not_set_it_back_but_an_empty_queue_does() -> None:
    patience = Patience()
    patience.look(10.0, [endpoint("a", **waiting(since=7.0))], [])
    assert patience.look(20.0, [endpoint("a", **waiting(since=19.0))], []) == {"a": 7.0}
    assert patience.look(21.0, [endpoint("a")], []) == {}
    assert patience.look(30.0, [endpoint("a", **waiting(since=29.0))], []) == {"a": 29.0}


def test_old_waiters_of_an_endpoint_that_lost_its_worker_count_from_that_moment() -> None:
    patience = Patience()
    overloaded = endpoint("a", **waiting(since=1.0))
    patience.look(50.0, [overloaded], [HOT])
    for gone in ([], [worker("a", 1, "one", draining=True)], [worker("a", 1, "one", asked=Residency.ASLEEP_1)]):
        assert patience.look(55.0, [overloaded], gone) == {"a": 50.0}
