"""One machine in simulated time: the gateway's queues, the manager, engines that load, serve and stop.

Events are taken in order of time; after those of one instant the policy is asked, as the gateway's loop would ask it,
and obeyed. The manager starts nothing before the memory is really free, and a policy that promises more than a card
has, or sends a request to a worker that is not ready, ends the simulation with an AssertionError.
"""

import heapq
from collections import Counter, deque
from dataclasses import dataclass, field

import msgspec

from gateway.scheduling.patience import Patience
from gateway.scheduling.types import HOST_MEMORY, KnownWorker, Plan, Situation
from tests.simulation.faults import BACKOFF, BACKOFF_MAX, DEATHS_LIMIT, NONE, Fate, Faults
from tests.simulation.policies import Policy
from tests.simulation.scenario import Model, Request, Scenario
from worker_manager.contract import Residency, SleepFacts, WorkerSpec, WorkerState

BREATH_SECONDS = 0.02
"""Between two plans, as in the gateway's loop."""
NOT_STARTED = (WorkerState.WAITING, WorkerState.BACKOFF, WorkerState.FAILED)
LOADS = frozenset({WorkerState.LOADING})
MOVES = LOADS | {WorkerState.SLEEPING, WorkerState.WAKING}
EPOCH = 1_000_000.0
"""When the trace begins, for the planner: its times are Unix times, and never near zero."""


@dataclass
class Engine:
    """A worker, its state and the requests on it."""

    spec: WorkerSpec
    model: Model
    state: WorkerState
    since: float
    last_used: float
    in_flight: int = 0
    draining: bool = False
    asked: Residency = Residency.HOT
    asked_at: float = 0.0
    sleep: SleepFacts | None = None
    ends_well: bool = True
    """Whether the load, the sleep or the wake that is under way will succeed."""
    ignores_sleep: bool = False
    deaths: int = 0
    light: bool = False
    """Its memory was given back and it has not been told to take it again."""
    turn: int = 0
    """New with each change of the state, so that the end of a state that was left early is known for stale."""

    def memory(self) -> tuple[tuple[str, ...], int]:
        """The cards it is on and what it holds on each."""
        if self.state in NOT_STARTED:
            return (), 0
        if self.light:
            return self.spec.gpus, self.model.residue_mib
        if self.spec.gpus:
            return self.spec.gpus, self.spec.gpu_memory_mib or 0
        return (HOST_MEMORY,), self.model.promise_mib

    def known(self, *, may_sleep: bool = True) -> KnownWorker:
        """As the planner sees it."""
        return KnownWorker(
            spec=self.spec,
            state=self.state,
            since=self.since,
            in_flight=self.in_flight,
            last_used=self.last_used,
            draining=self.draining and self.asked is Residency.HOT,
            asked=self.asked,
            asked_at=self.asked_at,
            can_sleep=may_sleep and bool(self.model.sleep) and self.state not in NOT_STARTED,
            memory_mib=self.memory()[1] if self.spec.gpus else None,
            sleep=self.sleep,
        )


@dataclass
class Served:
    """What came of a trace."""

    waits: list[tuple[str, float, float]] = field(default_factory=list)
    """Of each request: model, when it came, seconds it waited for a worker (until the end, if it never got one)."""
    unserved: int = 0
    loads: list[tuple[float, str]] = field(default_factory=list)
    """When which model's engine was started."""
    wakes: list[tuple[float, str]] = field(default_factory=list)
    """When which model's engine was woken."""
    stays: list[float] = field(default_factory=list)
    """How long each worker that had to go had been ready."""
    plans: int = 0
    seconds: float = 0.0
    """How long the trace is."""


class Machine:
    """Runs one scenario under one policy."""

    def __init__(self, scenario: Scenario, policy: Policy, faults: Faults = NONE) -> None:
        self.scenario = scenario
        self.policy = policy
        self._fate = Fate(faults, len(scenario.requests))
        self._never_sleep: set[str] = set()
        self.now = EPOCH
        self.served = Served()
        self.models = {model.name: model for model in scenario.models}
        self.engines: dict[str, Engine] = {}
        self.queues: dict[str, deque[Request]] = {name: deque() for name in self.models}
        self._patience = Patience()
        self._wanted = {model.name: model.wanted() for model in scenario.models}
        self._host_promises = scenario.host_promises()
        self._events: list[tuple[float, int, str, tuple[object, ...]]] = []
        self._order = 0
        self._turn = 0
        self._dirty = True
        self._planned_at = 0.0
        self._look_at = float("inf")

    def run(self, patience: float = 3600.0) -> Served:
        """Play the whole trace; after its end queues have `patience` seconds to be served."""
        arrivals = self.scenario.requests
        last = arrivals[-1].at if arrivals else 0.0
        end = EPOCH + last + patience
        index = 0
        while True:
            due = self._events[0][0] if self._events else float("inf")
            look = max(self._planned_at + BREATH_SECONDS, self.now) if self._dirty else self._look_at
            comes = EPOCH + arrivals[index].at if index < len(arrivals) else float("inf")
            at = min(due, look, comes)
            if at > end or (index == len(arrivals) and not any(self.queues.values())):
                break
            self.now = max(self.now, at)
            if comes <= self.now:
                self._arrive(arrivals[index])
                index += 1
            elif due <= self.now:
                _, _, kind, facts = heapq.heappop(self._events)
                self._happen(kind, facts)
            else:
                self._plan()
        return self._result(last)

    def _result(self, last: float) -> Served:
        for name, queue in self.queues.items():
            for request in queue:
                self.served.unserved += 1
                self.served.waits.append((name, request.at, self.now - EPOCH - request.at))
        self.served.seconds = last
        return self.served

    def _at(self, when: float, kind: str, *facts: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, kind, facts))

    # requests

    def _arrive(self, request: Request) -> None:
        queue = self.queues[request.model]
        queue.append(request)
        self._grant()
        if queue:
            self._dirty = True

    def _grant(self) -> None:
        for name in self.policy.turns(self.queues):
            queue = self.queues[name]
            while queue:
                engine = self._free_engine(name)
                if engine is None:
                    break
                self._serve(engine, queue.popleft())
                if self.policy.strict:
                    self._grant()
                    return

    def _free_engine(self, name: str) -> Engine | None:
        ceiling = self.models[name].per_worker
        able = [
            engine
            for engine in self.engines.values()
            if engine.model.name == name
            and engine.state is WorkerState.READY
            and not engine.draining
            and engine.in_flight < ceiling
        ]
        return min(able, key=lambda engine: engine.in_flight, default=None)

    def _serve(self, engine: Engine, request: Request) -> None:
        assert engine.state is WorkerState.READY
        assert not engine.draining
        engine.in_flight += 1
        self.served.waits.append((request.model, request.at, max(0.0, self.now - EPOCH - request.at)))
        self._at(self.now + request.seconds, "done", engine.spec.id)

    def lasting(self) -> dict[WorkerState, float]:
        """For how long the oldest of each state has been in it."""
        found: dict[WorkerState, float] = {}
        for engine in self.engines.values():
            found[engine.state] = max(found.get(engine.state, 0.0), self.now - engine.since)
        return found

    def _happen(self, kind: str, facts: tuple[object, ...]) -> None:
        engine = self.engines.get(str(facts[0]))
        assert engine is not None or kind == "over"
        if engine is None:
            return
        if kind == "done":
            engine.in_flight -= 1
            engine.last_used = self.now
            self._grant()
            self._dirty = self._dirty or engine.in_flight == 0
        elif engine.turn == facts[1]:
            self._end_of_state(engine)
            self._advance()
            self._grant()
            self._dirty = True

    # the manager

    def _enter(
        self, engine: Engine, state: WorkerState, seconds: float | None = None, *, ends_well: bool = True
    ) -> None:
        self._turn += 1
        engine.state, engine.since, engine.turn = state, self.now, self._turn
        engine.ends_well = ends_well
        if seconds is not None:
            self._at(self.now + seconds, "over", engine.spec.id, engine.turn)

    def _end_of_state(self, engine: Engine) -> None:
        model = engine.model
        if not engine.ends_well:
            self._die(engine)
        elif engine.state is WorkerState.BACKOFF:
            self._enter(engine, WorkerState.WAITING)
        elif engine.state in (WorkerState.LOADING, WorkerState.WAKING):
            if engine.state is WorkerState.LOADING:
                self._wanted[model.name] = msgspec.structs.replace(
                    self._wanted[model.name], load_seconds=model.load_seconds
                )
            self._enter(engine, WorkerState.READY)
            engine.last_used = self.now
        elif engine.state is WorkerState.SLEEPING:
            engine.sleep = SleepFacts(
                freed_mib=(engine.spec.gpu_memory_mib or 0) - model.residue_mib,
                sleep_seconds=self.now - engine.since,
                wake_seconds=model.wake_seconds,
                host_mib=model.host_mib,
            )
            self._enter(engine, WorkerState.ASLEEP)
            engine.light = True
        else:
            assert engine.state is WorkerState.STOPPING
            del self.engines[engine.spec.id]

    def _die(self, engine: Engine) -> None:
        """The manager ends it, and starts it anew after a while, or gives it up."""
        if engine.state in (WorkerState.SLEEPING, WorkerState.WAKING):
            self._never_sleep.add(engine.model.name)
        engine.deaths += 1
        engine.sleep, engine.light = None, False
        if engine.deaths >= DEATHS_LIMIT:
            self._enter(engine, WorkerState.FAILED)
        else:
            self._enter(engine, WorkerState.BACKOFF, min(BACKOFF_MAX, BACKOFF * 2 ** (engine.deaths - 1)))

    def _advance(self) -> None:
        """Start and wake what is waiting and fits by now, oldest first; let sleep who should."""
        for engine in list(self.engines.values()):
            if engine.asked is not Residency.HOT:
                if engine.state is WorkerState.READY and self._falls_asleep(engine):
                    first, again = engine.model.first_sleep_seconds, engine.model.sleep_seconds
                    seconds, well = self._fate.sleep(again if engine.sleep else first)
                    self._enter(engine, WorkerState.SLEEPING, seconds, ends_well=well)
            elif engine.state is WorkerState.ASLEEP and self._fits(engine) and not self._beside(engine, LOADS):
                engine.light = False
                seconds, well = self._fate.wake(engine.model.wake_seconds)
                self._enter(engine, WorkerState.WAKING, seconds, ends_well=well)
                self.served.wakes.append((self.now - EPOCH, engine.model.name))
            elif engine.state is WorkerState.WAITING and self._fits(engine) and not self._beside(engine, MOVES):
                seconds, well = self._fate.load(engine.model.load_seconds)
                self._enter(engine, WorkerState.LOADING, seconds, ends_well=well)
                self.served.loads.append((self.now - EPOCH, engine.model.name))

    def _falls_asleep(self, engine: Engine) -> bool:
        return not (engine.in_flight or engine.ignores_sleep or self._beside(engine, LOADS))

    def _beside(self, engine: Engine, states: frozenset[WorkerState]) -> bool:
        """Whether another one on its cards is in one of these states: nobody sleeps, wakes or starts beside a load."""
        return any(
            other is not engine and other.state in states and set(other.spec.gpus) & set(engine.spec.gpus)
            for other in self.engines.values()
        )

    def _fits(self, engine: Engine) -> bool:
        used: Counter[str] = Counter()
        for other in self.engines.values():
            on, mib = other.memory()
            for card in on if other is not engine else ():
                used[card] += mib
        needs = engine.spec.gpu_memory_mib or engine.model.promise_mib
        return all(used[card] + needs <= self.scenario.cards[card] for card in engine.spec.gpus or (HOST_MEMORY,))

    # the loop

    def _situation(self) -> Situation:
        in_flight: Counter[str] = Counter()
        for engine in self.engines.values():
            if not engine.draining:
                in_flight[engine.model.name] += engine.in_flight
        endpoints = [
            msgspec.structs.replace(
                wanted,
                in_flight=in_flight[name],
                waiting=len(queue),
                waiting_since=EPOCH + queue[0].at if queue else None,
            )
            for (name, wanted), queue in zip(self._wanted.items(), self.queues.values(), strict=True)
        ]
        workers = tuple(
            engine.known(may_sleep=engine.model.name not in self._never_sleep) for engine in self.engines.values()
        )
        unserved = self._patience.look(self.now, endpoints, workers)
        return Situation(
            now=self.now,
            endpoints=tuple(
                msgspec.structs.replace(one, unserved_since=unserved[one.name]) if one.name in unserved else one
                for one in endpoints
            ),
            workers=workers,
            cards=self.scenario.cards,
            host_promises=self._host_promises,
            sleep_memory_mib=self.scenario.sleep_memory_mib,
            starvation_seconds=self.scenario.starvation_seconds,
            minimum_residency_seconds=self.scenario.minimum_residency_seconds,
        )

    def _plan(self) -> None:
        decided = self.policy.decide(self._situation())
        self.served.plans += 1
        self._dirty, self._planned_at = False, self.now
        self._look_at = float("inf") if decided.wake_at is None else max(decided.wake_at, self.now + BREATH_SECONDS)
        self._obey(decided)
        self._advance()
        self._grant()

    def _obey(self, decided: Plan) -> None:
        desired = {spec.id: spec for spec in decided.desired}
        for engine in list(self.engines.values()):
            asked = decided.residencies.get(engine.spec.id, Residency.HOT)
            if asked is not engine.asked:
                engine.asked, engine.asked_at = asked, self.now
                engine.ignores_sleep = asked is not Residency.HOT and self._fate.ignores_sleep()
            engine.draining = engine.spec.id in decided.draining or engine.asked is not Residency.HOT
            if engine.spec.id not in desired and engine.state is not WorkerState.STOPPING:
                self._stop(engine)
        for spec in desired.values():
            if spec.id not in self.engines:
                self.engines[spec.id] = Engine(
                    spec, self.models[spec.endpoint], WorkerState.WAITING, self.now, self.now
                )
        self._check_promises()

    def _stop(self, engine: Engine) -> None:
        assert not engine.in_flight, f"{engine.spec.id} was dropped with requests on it"
        self._dirty = True
        if engine.state is WorkerState.READY:
            self.served.stays.append(self.now - engine.since)
        if engine.state not in NOT_STARTED:
            self._enter(engine, WorkerState.STOPPING, engine.model.stop_seconds)
        else:
            del self.engines[engine.spec.id]

    def _check_promises(self) -> None:
        held: Counter[str] = Counter()
        for engine in self.engines.values():
            if engine.state is WorkerState.FAILED:
                continue
            if engine.light and (engine.asked is not Residency.HOT or engine.state is WorkerState.STOPPING):
                for card in engine.spec.gpus:
                    held[card] += engine.model.residue_mib
                continue
            for card in engine.spec.gpus or (HOST_MEMORY,):
                held[card] += engine.spec.gpu_memory_mib or engine.model.promise_mib
        assert all(mib <= self.scenario.cards[card] for card, mib in held.items()), f"over-promised: {held}"
