"""Demand: leases, queues and what waiters are told, in a real event loop."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.errors import EndpointFailed, NoWorker, TooManyRequests
from gateway.scheduling.adapters import AdapterNews
from gateway.scheduling.demand import ANY, Demand
from gateway.scheduling.queue import AVOID_SECONDS, BATCH_PATIENCE_SECONDS, Waiter
from gateway.scheduling.slots import Lease, Slot
from gateway.scheduling.types import RETRY_FAILED_SECONDS
from gateway.types import Priority, Wish
from tests.support.planning import template
from tests.support.waiting import wait_until_async
from worker_manager.contract import (
    AdapterState,
    Failure,
    FailureKind,
    ObservedAdapter,
    ObservedWorker,
    Residency,
    SleepFacts,
    WorkerState,
    spec_hash,
)

FAILURE = Failure(kind=FailureKind.OUT_OF_MEMORY_AT_LOAD, message="out of memory", hint="use a smaller model")
NEVER = 3_600.0
BATCH = Wish(priority=Priority.BATCH)


class Clock:
    """Unix time as the test says."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def seen(
    worker_id: str,
    endpoint: str = "a",
    state: WorkerState = WorkerState.READY,
    since: float = 900.0,
    failure: Failure | None = None,
    restarts: int = 0,
    adapters: tuple[ObservedAdapter, ...] = (),
) -> ObservedWorker:
    """Make a worker as the manager tells of it."""
    spec = msgspec.structs.replace(template(endpoint), id=worker_id)
    return ObservedWorker(
        spec=spec,
        spec_hash=spec_hash(spec),
        state=state,
        residency=Residency.HOT,
        since=since,
        socket=f"{worker_id}/engine.sock",
        failure=failure,
        restarts=restarts,
        adapters=adapters,
    )


def loaded(name: str, revision: str = "1", state: AdapterState = AdapterState.READY) -> ObservedAdapter:
    reason = "it is broken" if state is AdapterState.FAILED else ""
    return ObservedAdapter(name=name, revision=revision, state=state, since=900.0, reason=reason)


def made(*workers: ObservedWorker, per_worker: int = 2, max_waiting: int = 100, clock: Clock | None = None) -> Demand:
    demand = Demand(Path("/run/engines"), max_waiting, clock or Clock())
    demand.set_endpoints({"a": per_worker, "b": per_worker})
    demand.set_workers(workers)
    return demand


def _are_waiting(demand: Demand, endpoint: str, number: int) -> bool:
    return len(demand.queues[endpoint].waiters) == number


def incarnations(demand: Demand, workers: Iterable[str]) -> frozenset[str]:
    """What a request remembers of the workers that failed it."""
    return frozenset(demand.slots[worker].incarnation for worker in workers if worker in demand.slots)


@contextlib.asynccontextmanager
async def waiting(
    demand: Demand,
    number: int,
    endpoint: str = "a",
    seconds: float = NEVER,
    avoid: Iterable[str] = (),
    wish: Wish = ANY,
) -> AsyncIterator[list[asyncio.Task[Lease]]]:
    """So many requests that wait in the endpoint's queue, in order; cancelled at the end."""
    before = len(demand.queues[endpoint].waiters)
    tasks = []
    for more in range(1, number + 1):
        tasks.append(asyncio.create_task(demand.acquire(endpoint, seconds, incarnations(demand, avoid), wish)))
        await wait_until_async(functools.partial(_are_waiting, demand, endpoint, before + more))
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def granted(task: asyncio.Task[Lease]) -> str:
    async with asyncio.timeout(5):
        return (await task).slot.id


# handing out


async def test_the_worker_with_the_fewest_requests_in_flight_gets_the_next_one() -> None:
    demand = made(seen("w1"), seen("w2"), seen("w3"), per_worker=9)
    got = [(await demand.acquire("a", 1)).slot.id for _ in range(6)]
    assert sorted(got[:3]) == sorted(got[3:]) == ["w1", "w2", "w3"]
    assert demand.in_flight("a") == 6


async def test_the_lease_knows_where_the_worker_listens() -> None:
    lease = made(seen("w1")).try_acquire("a")
    assert lease is not None
    assert lease.slot.socket == Path("/run/engines/w1/engine.sock")
    assert lease.waited == 0


async def test_beyond_the_ceiling_requests_wait_and_are_served_in_the_order_they_came() -> None:
    demand = made(seen("w1"), per_worker=1)
    first = await demand.acquire("a", 1)
    async with waiting(demand, 3) as tasks:
        assert demand.try_acquire("a") is None
        for task in tasks:
            assert not task.done()
            demand.release(first)
            assert await granted(task) == "w1"
            first = task.result()
        assert demand.in_flight("a") == 1


async def test_a_new_request_does_not_overtake_those_that_wait() -> None:
    demand = made(seen("w1", state=WorkerState.LOADING))
    async with waiting(demand, 1) as (task,):
        demand.slots["w1"].state = WorkerState.READY
        assert demand.try_acquire("a") is None
        demand.tick()
        assert await granted(task) == "w1"


async def test_another_endpoints_worker_is_never_given() -> None:
    demand = made(seen("w1", "b"))
    assert demand.try_acquire("a") is None
    assert demand.try_acquire("nobody") is None


@pytest.mark.parametrize("state", [state for state in WorkerState if state is not WorkerState.READY])
async def test_a_worker_that_is_not_ready_gets_no_request(state: WorkerState) -> None:
    assert made(seen("w1", state=state)).try_acquire("a") is None


async def test_a_worker_that_becomes_ready_serves_those_who_waited_and_teaches_how_long_it_takes() -> None:
    clock = Clock()
    demand = made(seen("w1", state=WorkerState.LOADING, since=clock.now), clock=clock)
    assert demand.eta_seconds("a") is None
    async with waiting(demand, 1) as (task,):
        clock.now += 20
        demand.set_workers([seen("w1", since=clock.now)])
        assert await granted(task) == "w1"
        assert task.result().waited == 20
    assert demand.queues["a"].last_load_seconds == 20
    demand.set_workers([seen("w1"), seen("w2", state=WorkerState.LOADING, since=clock.now - 5)])
    assert demand.eta_seconds("a") == 15
    assert demand.retry_after("a") == 15


async def test_what_was_learned_before_a_restart_is_told_until_something_newer_is() -> None:
    clock = Clock()
    told: list[tuple[str, float]] = []
    demand = made(seen("w1", state=WorkerState.LOADING, since=clock.now), clock=clock)
    demand.loaded = lambda endpoint, seconds: told.append((endpoint, seconds))
    demand.learn_load("a", 40)
    demand.learn_load("gone", 5)
    assert demand.eta_seconds("a") == demand.retry_after("a") == 40
    clock.now += 20
    assert demand.eta_seconds("a") == 20
    demand.set_workers([seen("w1", since=clock.now)])
    demand.learn_load("a", 40)
    assert demand.queues["a"].last_load_seconds == 20
    assert told == [("a", 20)]


async def test_who_waits_for_a_worker_that_wakes_is_told_by_how_long_its_last_wake_took() -> None:
    clock = Clock()
    wakes = msgspec.structs.replace(seen("w1", state=WorkerState.WAKING, since=clock.now), sleep=SleepFacts())
    demand = made(wakes, clock=clock)
    assert demand.eta_seconds("a") is None
    demand.learn_load("a", 60)
    demand.set_workers([msgspec.structs.replace(wakes, sleep=SleepFacts(wake_seconds=5))])
    clock.now += 2
    assert demand.eta_seconds("a") == demand.retry_after("a") == 3
    demand.set_workers([seen("w1", state=WorkerState.ASLEEP)])
    assert demand.eta_seconds("a") is None


async def test_a_draining_worker_gets_no_request_and_its_requests_do_not_count() -> None:
    demand = made(seen("w1"))
    lease = await demand.acquire("a", 1)
    demand.set_draining(frozenset({"w1"}))
    assert demand.try_acquire("a") is None
    assert demand.in_flight("a") == 0
    demand.release(lease)
    demand.set_draining(frozenset())
    assert demand.try_acquire("a") is not None


async def test_only_a_request_about_its_own_response_reaches_a_draining_worker() -> None:
    demand = made(seen("w1"), seen("w2", state=WorkerState.LOADING))
    demand.set_draining(frozenset({"w1"}))
    assert demand.acquire_worker("w1") is not None
    assert demand.acquire_worker("w2") is None
    assert demand.acquire_worker("nobody") is None


async def test_an_unreachable_worker_is_left_alone_until_a_probe_gets_through_and_is_reported_once() -> None:
    clock = Clock()
    demand = made(seen("w1"), clock=clock)
    reported: list[str] = []
    demand.unreachable = lambda slot: reported.append(slot.id)
    demand.mark_unreachable("w1")
    demand.mark_unreachable("w1")
    assert reported == ["w1"]
    clock.now += 1_000
    async with waiting(demand, 1) as (task,):
        demand.tick()
        assert demand.is_unreachable("w1")
        assert not task.done()
        demand.mark_reachable("w1")
        assert await granted(task) == "w1"
    assert not demand.is_unreachable("w1")


async def test_a_worker_that_started_anew_needs_no_probe() -> None:
    demand = made(seen("w1"))
    demand.mark_unreachable("w1")
    demand.set_workers([seen("w1", since=901.0)])
    assert demand.try_acquire("a") is not None


async def test_a_worker_that_is_gone_is_neither_reachable_nor_unreachable() -> None:
    demand = made(seen("w1"))
    demand.mark_unreachable("w1")
    demand.set_workers([])
    assert not demand.is_unreachable("w1")
    demand.mark_reachable("w1")
    assert demand.try_acquire("a") is None


async def test_a_lease_on_a_worker_that_has_gone_meanwhile_comes_back_all_the_same() -> None:
    demand = made(seen("w1"))
    lease = await demand.acquire("a", 1)
    assert demand.set_workers([]) == ["w1"]
    demand.set_workers([seen("w1")])
    demand.release(lease)
    assert demand.slots["w1"].in_flight == 0


# a request that its worker failed


async def test_a_request_avoids_the_worker_that_failed_it_and_takes_another() -> None:
    demand = made(seen("w1"), seen("w2"))
    lease = demand.try_acquire("a", frozenset({demand.slots["w1"].incarnation}))
    assert lease is not None
    assert lease.slot.id == "w2"


async def test_a_request_that_avoids_the_only_worker_does_not_hold_up_the_others() -> None:
    demand = made(seen("w1"))
    async with waiting(demand, 1, avoid=["w1"]):
        assert demand.try_acquire("a") is not None
        demand.set_draining(frozenset({"w1"}))
        async with waiting(demand, 1) as (other,):
            demand.set_draining(frozenset())
            assert await granted(other) == "w1"


async def test_a_worker_that_started_anew_serves_even_those_it_had_failed() -> None:
    clock = Clock()
    demand = made(seen("w1"), clock=clock)
    async with waiting(demand, 1, avoid=["w1"]) as (task,):
        clock.now += 0.1
        demand.set_workers([seen("w1", state=WorkerState.BACKOFF)])
        demand.set_workers([seen("w1", state=WorkerState.LOADING)])
        demand.tick()
        assert not task.done()
        clock.now += 0.1
        demand.set_workers([seen("w1", since=clock.now)])
        assert await granted(task) == "w1"


async def test_a_worker_that_failed_a_request_and_lives_on_is_tried_again_after_a_moment() -> None:
    clock = Clock()
    demand = made(seen("w1"), clock=clock)
    async with waiting(demand, 1, avoid=["w1"]) as (task,):
        demand.tick()
        assert not task.done()
        clock.now += AVOID_SECONDS
        demand.tick()
        assert await granted(task) == "w1"


# priority


async def test_interactive_requests_go_before_batch_and_within_one_priority_the_oldest_first() -> None:
    demand = made(seen("w1"), per_worker=1)
    lease = await demand.acquire("a", 1)
    async with waiting(demand, 2, wish=BATCH) as batch, waiting(demand, 2) as interactive:
        for task in (*interactive, *batch):
            demand.release(lease)
            assert await granted(task) == "w1"
            lease = task.result()


async def test_a_batch_request_that_has_waited_long_enough_goes_before_younger_interactive_ones() -> None:
    clock = Clock()
    demand = made(seen("w1"), per_worker=1, clock=clock)
    lease = await demand.acquire("a", 1)
    async with waiting(demand, 1) as (oldest,), waiting(demand, 1, wish=BATCH) as (batch,):
        clock.now += BATCH_PATIENCE_SECONDS
        async with waiting(demand, 1) as (youngest,), waiting(demand, 1, wish=BATCH) as (young_batch,):
            for task in (oldest, batch, youngest, young_batch):
                demand.release(lease)
                assert await granted(task) == "w1"
                lease = task.result()


async def test_the_planner_sees_who_has_waited_longest_whatever_its_priority() -> None:
    clock = Clock()
    demand = made(clock=clock)
    assert demand.queues["a"].waiters.oldest_since() is None
    async with waiting(demand, 1, wish=BATCH):
        clock.now += 5
        async with waiting(demand, 1):
            assert demand.queues["a"].waiters.oldest_since() == clock.now - 5


# what workers have read


def _given(demand: Demand, prefix: bytes) -> str:
    """The worker that a prompt gets; its lease goes back at once."""
    lease = demand.try_acquire("a", wish=Wish(prefix))
    assert lease is not None
    demand.release(lease)
    return lease.slot.id


async def test_a_conversation_stays_with_the_worker_that_has_read_its_beginning() -> None:
    demand = made(seen("w1"), seen("w2"), seen("w3"), per_worker=9)
    talks = [bytes([65 + number]) * 300 for number in range(6)]
    homes = [_given(demand, talk) for talk in talks]
    for turn in range(1, 6):
        assert [_given(demand, talk + bytes([97 + turn]) * 200 * turn) for talk in talks] == homes
        talks = [talk + bytes([97 + turn]) * 200 * turn for talk in talks]


async def test_a_worker_that_started_anew_has_read_nothing() -> None:
    demand = made(seen("w1"), seen("w2"))
    home = _given(demand, b"x" * 500)
    assert len(demand.slots[home].memory)
    demand.set_workers([seen("w1", since=901.0), seen("w2", since=901.0)])
    assert not len(demand.slots[home].memory)


async def test_a_lone_worker_costs_no_look_at_the_prompt() -> None:
    demand = made(seen("w1"))
    assert _given(demand, b"x" * 500) == "w1"
    assert not len(demand.slots["w1"].memory)
    demand.set_workers([seen("w1"), seen("w2", state=WorkerState.LOADING)])
    assert _given(demand, b"x" * 500) == "w1"
    assert len(demand.slots["w1"].memory), "what is read while a second worker loads is remembered"


async def test_the_same_prompt_for_another_endpoint_is_another_prompt() -> None:
    demand = made(seen("w1"), seen("w2"), seen("w3", "b"), seen("w4", "b"))
    assert _given(demand, b"x" * 500) in {"w1", "w2"}
    assert not len(demand.slots["w3"].memory) + len(demand.slots["w4"].memory)


# giving up


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    demand = made(seen("w1"), per_worker=1)
    lease = await demand.acquire("a", 1)
    async with waiting(demand, 2) as (first, second):
        first.cancel()
        await asyncio.wait({first})
        demand.release(lease)
        assert await granted(second) == "w1"


async def test_a_slot_granted_in_the_moment_its_waiter_was_cancelled_goes_to_the_next() -> None:
    demand = made(seen("w1"), per_worker=1)
    lease = await demand.acquire("a", 1)
    async with waiting(demand, 2) as (first, second):
        demand.release(lease)  # granted to the first, whose task has not run yet
        first.cancel()
        assert await granted(second) == "w1"
        assert first.cancelled()
        demand.release(second.result())
    assert demand.slots["w1"].in_flight == 0


async def test_a_task_cancelled_before_it_ever_ran_holds_nothing() -> None:
    demand = made(seen("w1"))
    task = asyncio.create_task(demand.acquire("a", 1))
    task.cancel()
    await asyncio.wait({task})
    assert demand.slots["w1"].in_flight == 0


async def test_a_waiter_cancelled_after_it_was_granted_and_refused_holds_nothing() -> None:
    demand = made(seen("w1", state=WorkerState.LOADING))
    async with waiting(demand, 1) as (task,):
        demand.set_endpoints({"b": 2})
        task.cancel()
        await asyncio.wait({task})
    assert demand.slots["w1"].in_flight == 0


async def test_when_the_time_is_up_a_waiter_is_told_what_to_do_and_when_to_come_back() -> None:
    demand = made()
    demand.queues["a"].last_load_seconds = 42.0
    with pytest.raises(NoWorker, match="No worker of 'a' was ready within 0 s") as caught:
        await demand.acquire("a", 0.01)
    assert caught.value.retry_after == 42
    assert not demand.queues["a"].waiters


async def test_a_slot_granted_in_the_moment_the_time_is_up_is_not_lost() -> None:
    demand = made(seen("w1"), per_worker=1)
    lease = await demand.acquire("a", 1)
    loop = asyncio.get_running_loop()
    async with waiting(demand, 1, seconds=0.05) as (task,):
        # the grant and the deadline fall into one turn of the loop
        loop.call_at(loop.time() + 0.05, demand.release, lease)
        with contextlib.suppress(NoWorker):
            demand.release(await task)
    await wait_until_async(lambda: demand.slots["w1"].in_flight == 0)


async def test_a_full_queue_refuses_the_next_one_and_says_when_to_try_again() -> None:
    demand = made(max_waiting=2)
    async with waiting(demand, 2):
        with pytest.raises(TooManyRequests, match="2 requests wait for 'a' already") as caught:
            await demand.acquire("a", 1)
        assert caught.value.retry_after
        async with waiting(demand, 1, "b"):
            pass


async def test_a_deleted_endpoint_tells_its_waiters_and_only_them() -> None:
    demand = made()
    async with waiting(demand, 2) as mine, waiting(demand, 1, "b") as (other,):
        demand.set_endpoints({"b": 2})
        for task in mine:
            with pytest.raises(NoWorker, match="'a' was deleted"):
                await task
        assert not other.done()
    with pytest.raises(NoWorker, match="'a' was deleted"):
        await demand.acquire("a", 1)


async def test_a_raised_ceiling_lets_waiters_in_at_once() -> None:
    demand = made(seen("w1"), per_worker=1)
    await demand.acquire("a", 1)
    async with waiting(demand, 1) as (task,):
        demand.set_endpoints({"a": 2, "b": 1})
        assert await granted(task) == "w1"


# failure


def failed(clock: Clock, state: WorkerState = WorkerState.FAILED, restarts: int = 5) -> ObservedWorker:
    return seen("w1", state=state, since=clock.now, failure=FAILURE, restarts=restarts)


async def test_waiters_of_an_endpoint_whose_only_worker_failed_learn_why() -> None:
    clock = Clock()
    demand = made(seen("w1", state=WorkerState.LOADING), clock=clock)
    async with waiting(demand, 1) as (task,):
        clock.now += 5
        demand.set_workers([failed(clock)])
        with pytest.raises(EndpointFailed, match=r"Out of memory\. Use a smaller model\."):
            await task


async def test_a_request_right_after_the_failure_is_refused_at_once_and_told_when_a_try_makes_sense() -> None:
    clock = Clock()
    demand = made(failed(clock), clock=clock)
    clock.now += 10
    with pytest.raises(EndpointFailed) as caught:
        await demand.acquire("a", NEVER)
    assert caught.value.retry_after == RETRY_FAILED_SECONDS - 10


async def test_a_request_half_a_minute_after_the_failure_waits_for_a_new_try() -> None:
    clock = Clock()
    demand = made(failed(clock), clock=clock)
    clock.now += RETRY_FAILED_SECONDS
    async with waiting(demand, 1) as (task,):
        demand.set_workers([seen("w1", state=WorkerState.FAILED, since=1_000, failure=FAILURE)])
        await asyncio.sleep(0)
        assert not task.done()


async def test_a_first_death_is_no_reason_to_give_up_and_a_second_one_is() -> None:
    clock = Clock()
    demand = made(seen("w1", state=WorkerState.LOADING), clock=clock)
    async with waiting(demand, 1) as (task,):
        demand.set_workers([failed(clock, WorkerState.BACKOFF, restarts=1)])
        await asyncio.sleep(0)
        assert not task.done()
        demand.set_workers([failed(clock, WorkerState.BACKOFF, restarts=2)])
        with pytest.raises(EndpointFailed):
            await task


async def test_while_another_worker_gives_hope_nobody_is_turned_away() -> None:
    clock = Clock()
    demand = made(failed(clock), seen("w2", state=WorkerState.LOADING), clock=clock)
    async with waiting(demand, 1) as (task,):
        demand.set_workers([failed(clock), seen("w2")])
        assert await granted(task) == "w2"


# what the planner is told


async def test_the_planner_is_called_when_a_request_begins_to_wait_and_when_it_ends() -> None:
    demand = made()
    calls: list[int] = []
    demand.changed = lambda: calls.append(len(demand.queues["a"].waiters))
    async with waiting(demand, 1):
        assert calls == [1]
    assert calls[-1] == 0


def _is_stopped(demand: Demand) -> bool:
    return demand.queues["a"].stopped


async def test_a_stop_lasts_until_the_next_request_waits() -> None:
    demand = made()
    demand.rest("a")
    assert _is_stopped(demand)
    async with waiting(demand, 1):
        assert not _is_stopped(demand)
        demand.rest("a")
        assert not _is_stopped(demand)
    demand.rest("a")
    demand.poke("a", 10)
    queue = demand.queues["a"]
    assert (queue.stopped, queue.warm_until) == (False, 1_010)


# anything at all

IDS = st.sampled_from(["w1", "w2", "w3"])
STATES = st.sampled_from(WorkerState)
WISHES = st.builds(
    Wish,
    st.sampled_from([b"", b"a" * 200, b"a" * 200 + b"b" * 600, b"b" * 2_000]),
    st.sampled_from(Priority),
    st.sampled_from(["", "", "red"]),
)
ADAPTERS = st.sampled_from([(), (loaded("red"),), (loaded("red", "2"),), (loaded("red", "1", AdapterState.FAILED),)])
NEWS = st.sampled_from([{}, {"a": AdapterNews({"red": "1"}, {})}, {"a": AdapterNews({}, {"red": ""})}])


class AnyDemand(RuleBasedStateMachine):
    """Requests, workers and the planner in any order; the loop turns only where a rule says so."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.demand = made(seen("w1"), per_worker=2, max_waiting=4, clock=self.clock)
        self.tasks: list[asyncio.Task[Lease]] = []
        self.leases: list[Lease] = []
        self.wanted: str | None = None
        """The revision of the adapter that requests are to be answered by."""
        self.closed: dict[Slot, int] = {}
        """Requests on the workers that served nobody when looked at last."""

    def turn(self) -> None:
        """Let the loop run until everything that can happen has, and take the leases that were given."""

        async def settle() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.runner.run(settle())
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.leases.append(task.result())

    @rule(avoid=st.frozensets(IDS, max_size=1), wish=WISHES, turn=st.booleans())
    def ask(self, avoid: frozenset[str], wish: Wish, *, turn: bool) -> None:
        async def begin() -> asyncio.Task[Lease]:
            return asyncio.create_task(self.demand.acquire("a", NEVER, incarnations(self.demand, avoid), wish))

        self.tasks.append(self.runner.run(begin()))
        if turn:
            self.turn()

    @rule(wish=WISHES)
    def try_at_once(self, wish: Wish) -> None:
        lease = self.demand.try_acquire("a", wish=wish)
        if lease is not None:
            assert lease.slot.state is WorkerState.READY
            assert not lease.slot.draining
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 99), turn=st.booleans())
    def give_back(self, which: int, *, turn: bool) -> None:
        self.demand.release(self.leases.pop(which % len(self.leases)))
        if turn:
            self.turn()

    @precondition(lambda self: self.tasks)
    @rule(which=st.integers(0, 99), turn=st.booleans())
    def cancel(self, which: int, *, turn: bool) -> None:
        self.tasks[which % len(self.tasks)].cancel()
        if turn:
            self.turn()

    @rule(states=st.dictionaries(IDS, st.tuples(STATES, ADAPTERS)))
    def observe(self, states: dict[str, tuple[WorkerState, tuple[ObservedAdapter, ...]]]) -> None:
        failures = {WorkerState.FAILED: FAILURE}
        self.demand.set_workers(
            seen(name, state=state, since=self.clock.now, failure=failures.get(state), adapters=adapters)
            for name, (state, adapters) in states.items()
        )

    @rule(news=NEWS)
    def adapt(self, news: dict[str, AdapterNews]) -> None:
        self.demand.set_adapters(news)
        self.wanted = news["a"].revisions.get("red") if news else None

    @rule(ids=st.frozensets(IDS))
    def drain(self, ids: frozenset[str]) -> None:
        before = {name: slot.in_flight for name, slot in self.demand.slots.items()}
        self.demand.set_draining(ids)
        assert all(self.demand.slots[name].in_flight == before[name] for name in ids & before.keys())

    @rule(seconds=st.sampled_from([0.1, 2.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.demand.tick()
        for waiter in self.demand.queues["a"].waiters if "a" in self.demand.queues else ():
            if not waiter.granted.done():
                assert not any(self.could_serve(slot, waiter) for slot in self.demand.slots.values()), "nobody starves"

    def could_serve(self, slot: Slot, waiter: Waiter) -> bool:
        if waiter.wish.adapter and (self.wanted is None or slot.adapters.get(waiter.wish.adapter) != self.wanted):
            return False
        return slot.serves() and slot.in_flight < 2 and slot.incarnation not in waiter.avoided(self.clock.now)

    @rule(worker=IDS)
    def lose_reach(self, worker: str) -> None:
        self.demand.mark_unreachable(worker)

    @rule(worker=IDS)
    def regain_reach(self, worker: str) -> None:
        self.demand.mark_reachable(worker)

    @rule(there=st.booleans())
    def register_or_delete(self, *, there: bool) -> None:
        self.demand.set_endpoints({"a": 2} if there else {})

    @rule()
    def settle(self) -> None:
        self.turn()

    @invariant()
    def counts_are_never_negative_and_never_over_the_ceiling(self) -> None:
        assert all(0 <= slot.in_flight <= 2 for slot in self.demand.slots.values())

    @invariant()
    def whoever_serves_nobody_gets_no_lease(self) -> None:
        closed = {slot: slot.in_flight for slot in self.demand.slots.values() if not slot.serves()}
        assert all(in_flight <= self.closed.get(slot, in_flight) for slot, in_flight in closed.items())
        self.closed = closed

    def teardown(self) -> None:
        for task in self.tasks:
            task.cancel()
        while self.tasks:
            self.turn()
        for lease in self.leases:
            self.demand.release(lease)
        assert all(slot.in_flight == 0 for slot in self.demand.slots.values())
        assert all(not queue.waiters for queue in self.demand.queues.values())
        self.runner.close()


AnyDemand.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
test_whatever_happens_every_lease_comes_back = AnyDemand.TestCase


# changes on trial


async def test_a_worker_on_trial_gets_no_request_not_even_in_the_moment_in_which_it_becomes_ready() -> None:
    clock = Clock()
    demand = made(clock=clock)
    demand.set_on_trial(frozenset({"w1"}))
    async with waiting(demand, 1) as (task,):
        clock.now += 5
        demand.set_workers([seen("w1")])
        assert demand.try_acquire("a") is None
        assert not task.done()
        clock.now += 2
        demand.set_on_trial(frozenset())
        assert await granted(task) == "w1"
        assert (task.result().waited, task.result().woke) == (7, 7)


async def test_a_request_is_told_how_much_of_its_wait_its_worker_took_to_become_ready() -> None:
    clock = Clock()
    demand = made(seen("w1", state=WorkerState.LOADING), per_worker=1, clock=clock)
    async with waiting(demand, 2) as (first, second):
        clock.now += 10
        demand.set_workers([seen("w1", since=clock.now)])
        assert await granted(first) == "w1"
        clock.now += 3
        demand.release(first.result())
        assert await granted(second) == "w1"
        assert (first.result().waited, first.result().woke) == (10, 10)
        assert (second.result().waited, second.result().woke) == (13, 10)
    lease = made(seen("w1")).try_acquire("a")
    assert lease is not None
    assert lease.woke == 0


async def test_nobody_is_refused_because_the_worker_of_a_change_failed_that_others_make_up_for() -> None:
    demand = made(seen("w1", state=WorkerState.LOADING))
    demand.set_pardoned(frozenset({"w1"}))
    async with waiting(demand, 1) as (task,):
        demand.set_workers([seen("w1", state=WorkerState.FAILED, failure=FAILURE, since=1_001.0)])
        await asyncio.sleep(0)
        assert not task.done()
        demand.set_workers([seen("w0")])
        assert await granted(task) == "w0"


async def test_an_endpoint_is_warm_while_a_worker_of_it_is_ready() -> None:
    demand = made(seen("w1", state=WorkerState.LOADING), seen("w2", "b"))
    assert not demand.is_warm("a")
    assert demand.is_warm("b")


# adapters

RED = Wish(adapter="red")
WANTED = {"a": AdapterNews({"red": "1"}, {})}


async def test_a_request_for_an_adapter_gets_a_worker_that_has_it() -> None:
    demand = made(seen("w1"), seen("w2", adapters=(loaded("red"),)), seen("w3", adapters=(loaded("red", "0"),)))
    demand.set_adapters(WANTED)
    leases = [demand.try_acquire("a", wish=RED) for _ in range(3)]
    assert [lease.slot.id if lease else None for lease in leases] == ["w2", "w2", None]


async def test_whoever_waits_for_an_adapter_keeps_nobody_else_from_a_free_worker() -> None:
    demand = made(seen("w1"))
    demand.set_adapters(WANTED)
    async with waiting(demand, 1, wish=RED) as (task,):
        assert demand.try_acquire("a") is not None
        demand.set_workers([seen("w1", adapters=(loaded("red", state=AdapterState.LOADING),))])
        assert not task.done()
        demand.set_workers([seen("w1", adapters=(loaded("red"),))])
        assert await granted(task) == "w1"


async def test_those_behind_a_request_for_an_adapter_are_served() -> None:
    demand = made(seen("w1", state=WorkerState.LOADING))
    demand.set_adapters(WANTED)
    async with waiting(demand, 1, wish=RED), waiting(demand, 1) as (other,):
        demand.set_workers([seen("w1")])
        assert await granted(other) == "w1"


async def test_an_adapter_that_no_ready_worker_could_load_is_refused_with_the_reason() -> None:
    broken = (loaded("red", state=AdapterState.FAILED),)
    demand = made(seen("w1", adapters=broken), seen("w2"))
    demand.set_adapters(WANTED)
    async with waiting(demand, 1, wish=RED) as (task,):
        demand.set_workers([seen("w1", adapters=broken)])
        with pytest.raises(
            EndpointFailed, match="The adapter 'red' of the endpoint 'a' cannot be served: it is broken"
        ):
            await task
    with pytest.raises(EndpointFailed, match="it is broken"):
        await demand.acquire("a", NEVER, wish=RED)
    assert demand.try_acquire("a") is not None


async def test_an_adapter_that_no_plan_has_heard_of_yet_is_waited_for_and_not_taken_for_a_deleted_one() -> None:
    demand = made()
    async with waiting(demand, 1, wish=RED) as (task,):
        demand.set_workers([seen("w1", adapters=(loaded("red"),))])
        demand.set_adapters({"a": AdapterNews({"blue": "1"}, {})})
        demand.set_workers([seen("w1", adapters=(loaded("red"),))])
        assert not task.done()
        demand.set_adapters(WANTED)
        assert await granted(task) == "w1"


async def test_an_adapter_that_can_not_be_is_refused_and_one_that_comes_is_waited_for_until_it_is_deleted() -> None:
    demand = made(seen("w1"))
    demand.set_adapters({"a": AdapterNews({}, {"red": "its rank is too high"})})
    with pytest.raises(EndpointFailed, match="its rank is too high"):
        await demand.acquire("a", NEVER, wish=RED)
    demand.set_adapters({"a": AdapterNews({}, {"red": ""})})
    async with waiting(demand, 1, wish=RED) as (task,):
        demand.set_adapters({})
        with pytest.raises(NoWorker, match="The adapter 'red' of 'a' was deleted"):
            await task
