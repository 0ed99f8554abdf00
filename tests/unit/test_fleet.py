"""Gateway and manager together, in any order of events: the real rules of both sides on a played machine.

The gateway's scheduler, planner, orders and demand are the real ones, and so are the manager's rules; hypothesis says
what happens: requests, deaths, restarts of either side, changes of endpoints, other programs on the cards, and time.
"""

import asyncio
from pathlib import Path
from typing import NamedTuple, cast

import hypothesis
import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.database.connection import Database
from gateway.manager import ManagerClient
from gateway.scheduling.demand import Demand
from gateway.scheduling.loop import Limits, Scheduler
from gateway.scheduling.sleep_failures import SleepFailures
from gateway.scheduling.slots import Lease
from gateway.scheduling.types import WantedEndpoint
from tests.support.battery import Tell, size
from tests.support.planning import endpoint, template
from tests.support.played_manager import ASLEEP_MIB, CARDS, PROMISE_MIB, TOTAL_MIB, Watch, World
from worker_manager import actions as act
from worker_manager import room
from worker_manager import tracked as life
from worker_manager.contract import (
    Accepted,
    DesiredSet,
    HostFacts,
    ObservedSet,
    ObservedWorker,
    Residency,
    SleepFacts,
    WorkerState,
)

EXAMPLES, STEPS = size(12, 260), 50
NEVER = 1e9
HOST_MIB = 64_000
CARDS_OF = {"a": 1, "b": 1, "c": 2, "d": 1}
NAMES = st.sampled_from(sorted(CARDS_OF))
CALM_SECONDS = 3000.0
SETTLE_TURNS = 6


class Machine(World):
    """The played machine; what should exist comes from the gateway."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.desired = None
        self.resting: dict[str, Residency] = {}
        """Engines that gave their memory back, whether or not a manager knows it."""
        self.busy: dict[str, int] = {}
        """Requests on each engine, by the gateway's account."""

    def wish(self) -> None:
        """The gateway says, and hypothesis says what other programs take."""

    def cards_of(self, one: str) -> tuple[str, ...]:
        """Of one that is gone by now nothing is known."""
        known = self.known.get(one)
        return known.spec.gpus if known is not None else CARDS

    def happen(self) -> None:
        """A manager that has just started finds a sleeper asleep."""
        for one, known in list(self.known.items()):
            if one in self.resting and known.state is WorkerState.LOADING and one in self.units:
                ready = life.judged(life.entered(known, WorkerState.READY, self.now), ("", ""))
                self.known[one] = life.asleep(ready, self.resting[one], SleepFacts(), self.now)
        super().happen()

    def holds(self, one: str) -> int:
        """What it takes of each of its cards."""
        return ASLEEP_MIB if one in self.resting else PROMISE_MIB

    def begin(self, action: act.Action) -> None:
        """No engine is ended or put to sleep by order while it answers."""
        if isinstance(action, act.Stop | act.Sleep):
            assert not self.busy.get(action.id), f"{action} under {self.busy[action.id]} requests"
        if isinstance(action, act.Start | act.Wake):
            self.resting.pop(action.id, None)
        super().begin(action)

    def asleep(self, one: str) -> None:
        """It has given its memory back."""
        self.resting[one] = self.known[one].level
        super().asleep(one)

    def observed(self, manager: str, version: int) -> ObservedSet:
        """What the manager tells the gateway."""
        host = HostFacts(
            launcher="process",
            device="cuda",
            gpus=self.gpus(),
            memory_total_mib=HOST_MIB,
            memory_available_mib=HOST_MIB,
        )
        generation = self.desired.generation if self.desired is not None else 0
        workers = tuple(self._told(one) for one in sorted(self.known))
        return ObservedSet(manager=manager, version=version, generation=generation, workers=workers, host=host)

    def _told(self, one: str) -> ObservedWorker:
        return life.observed(self.known[one], self.holds(one) if one in self.units else None, None)


class Line(ManagerClient):
    """The gateway's line to the played manager."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    async def set_desired(self, desired: DesiredSet) -> Accepted:
        """As the manager takes it."""
        assert self.machine.desired is None or desired.generation >= self.machine.desired.generation
        self.machine.desired = desired
        return Accepted(manager=self.name, generation=desired.generation)


class Endpoints:
    """The catalogue: which endpoints there are, and of which shape."""

    def __init__(self) -> None:
        self.lengths = dict.fromkeys(CARDS_OF, 1000)

    async def look(self) -> None:
        """There is nothing to look at."""

    def wanted(self, _host: HostFacts) -> tuple[WantedEndpoint, ...]:
        return tuple(
            endpoint(
                name,
                gpus=CARDS_OF[name],
                promise=PROMISE_MIB,
                template=template(name, PROMISE_MIB, max_model_len=length),
                per_worker=2,
                max_workers=2,
                idle_seconds=100,
                sleep=(Residency.ASLEEP_1,),
                sleep_after_seconds=5,
            )
            for name, length in self.lengths.items()
        )

    def host_promises(self, _host: HostFacts) -> dict[str, int]:
        return {}


class NoTrials:
    """Nothing is on trial."""

    def look(self, _observed: ObservedSet, _wanted: object) -> frozenset[str]:
        return frozenset()


class Held(NamedTuple):
    """A request that an engine answers."""

    lease: Lease
    born: float
    """When its engine was made: an engine that comes again under the same name is another one."""


class Fleet(RuleBasedStateMachine):
    """Everything that may happen."""

    steps = 0

    @initialize(seed=st.integers(0, 10**9))
    def begin(self, seed: int) -> None:
        self.runner = asyncio.Runner()
        self.machine = Machine(seed)
        self.watch = Watch(self.machine)
        self.endpoints = Endpoints()
        self.managers, self.version = 1, 0
        self.requests: list[asyncio.Task[Lease]] = []
        self.held: list[Held] = []
        self.open_gateway()

    def open_gateway(self) -> None:
        """A gateway that knows nothing yet."""
        self.demand = Demand(Path("/engines"), 8, lambda: self.machine.now)
        self.demand.set_endpoints(dict.fromkeys(self.endpoints.lengths, 2))
        self.drained = frozenset[str]()
        """Who was draining before what happens now."""
        failures = SleepFailures(cast("Database", None))  # it is asked, and never learns
        line = Line(self.machine, f"m{self.managers}")
        limits = Limits(gpu_margin_mib=0)
        self.scheduler = Scheduler(
            line, self.demand, self.endpoints, failures, NoTrials(), limits, lambda: self.machine.now
        )

    def plan(self) -> None:
        """The gateway hears of the manager and plans."""
        self.version += 1
        self.scheduler._take(self.machine.observed(f"m{self.managers}", self.version))
        self.runner.run(self._step())

    async def _step(self) -> None:
        await self.scheduler._step()
        await self._turns()

    async def _turns(self) -> None:
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)
        for task in [task for task in self.requests if task.done()]:
            self.requests.remove(task)
            if not task.cancelled() and task.exception() is None:
                self._granted(task.result())
        self.drained = frozenset(slot.id for slot in self.demand.slots.values() if slot.draining)

    def _granted(self, lease: Lease) -> None:
        unit = self.machine.units.get(lease.slot.id)
        was_drained = lease.slot.draining and lease.slot.id in self.drained
        assert not was_drained, "no lease on a draining worker"
        self.held.append(Held(lease, unit.created_at if unit is not None else 0.0))
        self.count()

    def count(self) -> None:
        """Requests end with their engine; how many each engine has."""
        for held in list(self.held):
            unit = self.machine.units.get(held.lease.slot.id)
            if unit is None or not unit.running or unit.created_at != held.born:
                self.held.remove(held)
                self.demand.release(held.lease)
        self.machine.busy = {}
        for held in self.held:
            one = held.lease.slot.id
            self.machine.busy[one] = self.machine.busy.get(one, 0) + 1

    # what clients do

    @rule(names=st.lists(NAMES, min_size=1, max_size=8))
    def ask(self, names: list[str]) -> None:
        async def begin() -> None:
            self.requests += [asyncio.create_task(self.demand.acquire(name, NEVER)) for name in names]
            await self._turns()

        self.runner.run(begin())

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def answer(self, which: int) -> None:
        self.demand.release(self.held.pop(which % len(self.held)).lease)
        self.runner.run(self._turns())
        self.count()

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        self.requests[which % len(self.requests)].cancel()
        self.runner.run(self._turns())

    # what time and accidents do

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 30.0, 120.0]), plans=st.booleans())
    def pass_time(self, seconds: float, *, plans: bool) -> None:
        """`plans`: the gateway is there all the while; else it hears nothing and says nothing."""
        until = self.machine.now + seconds
        while self.machine.now < until:
            self.machine.end_jobs()
            self.watch()
            self.machine.happen()
            self.count()
            self.machine.look_around()
            if plans:
                self.plan()
                self.machine.look_around()  # a new desired set wakes the manager
            self.no_gpu_is_promised_twice()
            self.machine.now = min(self.machine.next_moment(), max(until, self.machine.now + 0.01))

    @precondition(lambda self: self.machine.units)
    @rule(which=st.integers(0, 99), vanishes=st.booleans())
    def kill(self, which: int, *, vanishes: bool) -> None:
        one = sorted(self.machine.units)[which % len(self.machine.units)]
        self.machine.resting.pop(one, None)
        if vanishes:
            del self.machine.units[one]
        else:
            dead = msgspec.structs.replace(self.machine.units[one], running=False, exit_code=137)
            self.machine.units[one] = dead
        self.count()

    @rule(what=st.sampled_from(["manager", "gateway", "others", "others"]), mib=st.sampled_from([0, 300, 700]))
    def restart_or_crowd(self, what: str, mib: int) -> None:
        """Either side starts anew, or other programs take or leave memory."""
        if what == "manager":
            self.machine.known, self.machine.jobs, self.machine.desired = {}, {}, None
            self.managers += 1
            cast("Line", self.scheduler._manager).name = f"m{self.managers}"
        elif what == "gateway":
            self._drop_all()
            self.open_gateway()
        else:
            self.machine.foreign = mib

    # what administrators do

    @rule(name=NAMES, what=st.sampled_from(["start", "rest", "delete", "change", "change"]), long=st.booleans())
    def administrate(self, name: str, what: str, *, long: bool) -> None:
        if what == "start":
            self.demand.poke(name, 60)
        elif what == "rest":
            self.demand.rest(name)
        elif what == "delete":
            self.endpoints.lengths.pop(name, None)
        else:
            self.endpoints.lengths[name] = 2000 if long else 1000
        self.demand.set_endpoints(dict.fromkeys(self.endpoints.lengths, 2))
        self.runner.run(self._turns())

    # what always holds

    @invariant()
    def no_gpu_is_promised_twice(self) -> None:
        if not hasattr(self, "machine"):
            return
        specs = room.live_specs(self.machine.known, self.machine.units)
        for gpu in self.machine.gpus():
            held = sum(self.machine.holds(one.id) for one in specs if gpu.uuid in one.gpus)
            assert held <= TOTAL_MIB + room.GPU_MARGIN_MIB, f"{held} MiB on {gpu.uuid}"

    @invariant()
    def steps_are_counted(self) -> None:
        Fleet.steps += 1

    def _drop_all(self) -> None:
        for task in self.requests:
            task.cancel()
        self.runner.run(self._turns())
        self.requests, self.held = [], []
        self.count()

    def teardown(self) -> None:
        """Once all is well, nobody waits any more: whoever asked was served, or told why not."""
        if not hasattr(self, "machine"):
            return
        try:
            self.come_to_rest()
        finally:
            self._drop_all()
            self.runner.close()

    def come_to_rest(self) -> None:
        """Let all be well and wait for it."""
        self.machine.calm = True
        self.machine.foreign = 0
        until = self.machine.now + CALM_SECONDS
        while self.requests and self.machine.now < until:
            self.pass_time(5.0, plans=True)
            for held in self.held:
                self.demand.release(held.lease)
            self.held = []
            self.count()
        assert not self.requests, "somebody waits for ever"


def test_in_any_order_of_events_no_gpu_is_promised_twice_and_no_worker_in_use_is_taken_away(
    record_property: Tell,
) -> None:
    wide = hypothesis.settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)
    Fleet.steps = 0
    run_state_machine_as_test(Fleet, settings=wide)
    record_property("steps", f"{Fleet.steps:,} of gateway and manager together")
