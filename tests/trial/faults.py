"""What goes wrong on purpose: each kind is put in, found (or not), lifted, and noted down.

A lane takes one kind after another out of the plan, in the order of the seed; lanes work at the same time and never on
one endpoint. Whom a fault meets depends on what runs at that moment.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.engine_simulator.configuration import Faults
from tests.trial.machine import TrialMachine
from tests.trial.witness import Json, Witness

TARGET_SECONDS = 45.0
"""How long a fault waits for somebody to meet."""
ASK_AFTER_SECONDS = 4.0
"""Where nobody is awake to be met, so often a request is sent."""
FIND_SECONDS = 60.0
"""How long it may take until the status tells what has happened."""
FOREVER = 600.0
MISSES_LIMIT = 10
"""Of one lane: it gives up then."""
LAST_LOOKS = 3
"""So often one looks for the failure of a worker that is gone."""

Ask = Callable[[str], Awaitable[None]]


@dataclass(kw_only=True)
class Injection:
    """One fault; Unix seconds."""

    kind: str
    endpoint: str = ""
    worker: str = ""
    at: float = 0.0
    found_at: float | None = None
    found_as: str = ""
    over_at: float | None = None
    """From then on it costs nobody anything but the load that follows."""
    moot: str = ""
    """Why it could not be put in, or met nobody."""
    expected: frozenset[str] = field(default_factory=frozenset)


class Missed(Exception):
    """The fault met nobody, which is nobody's fault; the message says why."""


class Saboteur:
    """Runs the plan."""

    def __init__(self, machine: TrialMachine, witness: Witness, ask: Ask, seed: int) -> None:
        """`ask` sends a request to an endpoint whose answer counts like any other."""
        self.injected: list[Injection] = []
        self._machine = machine
        self._witness = witness
        self._ask = ask
        self._chance = random.Random(f"faults {seed}")  # noqa: S311 - repeatable, not secret
        self._taken: set[str] = set()
        self._asked: set[asyncio.Task[None]] = set()
        self._kinds: dict[str, Callable[[Injection], Awaitable[None]]] = {
            "killed": self._killed,
            "crashed": self._crashed,
            "removed": self._removed,
            "hung": self._hung,
            "wake_differs": self._wake_differs,
            "wake_refused": self._wake_refused,
            "wake_hangs": self._wake_hangs,
            "slow_load": self._slow_load,
            "stuck_load": self._stuck_load,
            "sleep_keeps_memory": self._sleep_keeps_memory,
            "exit_keeps_memory": self._exit_keeps_memory,
            "manager_killed": self._manager_killed,
        }

    async def run(self, until: float) -> None:
        """All lanes until the plan is done, or no fault may begin any more (Unix seconds)."""
        pace = self._machine.pace
        plan = [kind for kind, times in pace.plan.items() for _ in range(times)]
        self._chance.shuffle(plan)
        async with asyncio.TaskGroup() as group:
            for _ in range(pace.lanes):
                group.create_task(self._lane(plan, until))
        await asyncio.gather(*self._asked)

    async def _lane(self, plan: list[str], until: float) -> None:
        misses = 0
        while plan and misses < MISSES_LIMIT and time.time() < until:
            await asyncio.sleep(self._chance.uniform(*self._machine.pace.pause))
            if not plan or time.time() >= until:
                return
            one = Injection(kind=plan.pop(0))
            self.injected.append(one)
            try:
                await self._kinds[one.kind](one)
            except Missed as missed:
                one.moot = str(missed)
                misses += 1
                plan.append(one.kind)  # another try at the end
            finally:
                if one.endpoint:
                    self._machine.order(one.endpoint)
                    self._taken.discard(one.endpoint)
                one.over_at = max(one.over_at or 0.0, time.time()) if one.at else None

    # whom

    async def _target(self, one: Injection, *states: str, fits: Callable[[Json], bool] = lambda _: True) -> Json:
        """A worker in one of these states, rather a busy one; its endpoint is taken. Raises Missed."""
        began, asked = time.time(), 0
        while time.time() < began + TARGET_SECONDS:
            found = [w for w in self._witness.in_state(*states) if w["spec"]["endpoint"] not in self._taken and fits(w)]
            if found:
                least = min(worker["restarts"] for worker in found)
                fresh = [worker for worker in found if worker["restarts"] == least]
                busy = [worker for worker in fresh if worker["in_flight"]]
                chosen = self._chance.choice(busy or fresh)
                self._take(one, chosen["spec"]["endpoint"], chosen["spec"]["id"])
                return chosen
            if "ready" in states and time.time() > began + ASK_AFTER_SECONDS * (1 + asked):
                asked += 1
                self._ask_for(self._chance.choice(sorted(self._witness.endpoints.keys() - self._taken)))
            await self._witness.next_look()
        raise Missed(f"no worker was {' or '.join(states)}")

    def _take(self, one: Injection, endpoint: str, worker: str) -> None:
        self._taken.add(endpoint)
        one.endpoint, one.worker = endpoint, worker

    # found

    async def _find_death(self, one: Injection, *kinds: str, seconds: float = FIND_SECONDS) -> None:
        """Wait until the failure is told. Raises Missed where the worker is gone without one."""
        one.expected = frozenset(kinds)
        deadline, looks_without = time.time() + seconds, 0
        while time.time() < deadline:
            death = self._witness.died(one.endpoint, one.at - 1.0, one.worker)
            if death is not None:
                one.found_at, one.found_as = death.at, death.kind
                one.over_at = max(time.time(), self._witness.retry_at(one.endpoint))
                return
            is_there = any(worker["spec"]["id"] == one.worker for worker in self._witness.workers)
            looks_without = 0 if is_there else looks_without + 1
            if looks_without > LAST_LOOKS:
                raise Missed(f"{one.worker} was stopped before the fault came out")
            await self._witness.next_look()

    def _ask_for(self, endpoint: str) -> None:
        """Make somebody want it; nobody waits for the answer here."""
        task = asyncio.create_task(self._send(endpoint))
        self._asked.add(task)

    async def _send(self, endpoint: str) -> None:
        await self._ask(endpoint)

    # crash

    async def _killed(self, one: Injection) -> None:
        worker = await self._target(one, "ready")
        one.at = time.time()
        if not await asyncio.to_thread(self._machine.kill, worker["spec"]["id"]):
            raise Missed("it was gone")
        await self._find_death(one, "killed")

    async def _crashed(self, one: Injection) -> None:
        """In the middle of an answer."""
        await self._target(one, "ready", fits=self._is_alone)
        one.at = time.time()
        self._machine.order(one.endpoint, Faults(crash_after_requests=0), one.at)
        self._ask_for(one.endpoint)
        await self._find_death(one, "unknown", "gpu_fault")

    async def _removed(self, one: Injection) -> None:
        worker = await self._target(one, "ready")
        one.at = time.time()
        if not await asyncio.to_thread(self._machine.remove, worker["spec"]["id"]):
            raise Missed("it was gone")
        await self._find_death(one, "killed")

    # hang

    async def _hung(self, one: Injection) -> None:
        await self._target(one, "ready", fits=self._is_alone)
        one.at = time.time()
        self._machine.order(one.endpoint, Faults(hang_with_green_health=True), one.at)
        self._ask_for(one.endpoint)
        await self._find_death(one, "hung")

    # failed wake

    async def _wake_differs(self, one: Injection) -> None:
        await self._break_wake(one, Faults(bad_wake=True))

    async def _wake_refused(self, one: Injection) -> None:
        await self._break_wake(one, Faults(refuse_wake=True))

    async def _wake_hangs(self, one: Injection) -> None:
        await self._break_wake(one, Faults(hang_on_wake=True))

    async def _break_wake(self, one: Injection, faults: Faults) -> None:
        await self._target(one, "asleep", "sleeping")
        one.at = time.time()
        self._machine.order(one.endpoint, faults, one.at)
        self._ask_for(one.endpoint)
        await self._find_death(one, "wake_failed", seconds=2 * FIND_SECONDS)

    # slow load

    async def _slow_load(self, one: Injection) -> None:
        extra = self._machine.pace.slow_load
        await self._next_load(one, Faults(slow_load=extra))
        began = time.time()
        while any(worker["spec"]["id"] == one.worker for worker in self._witness.in_state("creating", "loading")):
            if time.time() - began > FIND_SECONDS:
                return
            await self._witness.next_look()
        took = time.time() - began
        if not any(worker["spec"]["id"] == one.worker for worker in self._witness.in_state("ready")):
            raise Missed("it was let go")
        if took >= extra - 1.0:
            one.found_at, one.found_as = time.time(), f"loading for {took:.0f} s"

    async def _stuck_load(self, one: Injection) -> None:
        await self._next_load(one, Faults(slow_load=FOREVER))
        await self._find_death(one, "load_timeout")

    async def _next_load(self, one: Injection, faults: Faults) -> None:
        """Break the next load of an endpoint that has no worker, and wait until it is under way. Raises Missed."""
        deadline = time.time() + TARGET_SECONDS
        while not (cold := self._cold()):
            if time.time() > deadline:
                raise Missed("no endpoint was cold")
            await self._witness.next_look()
        self._take(one, self._chance.choice(cold), "")
        self._machine.order(one.endpoint, faults)
        self._ask_for(one.endpoint)
        deadline = time.time() + 2 * FIND_SECONDS
        while not one.worker:
            await self._witness.next_look()
            loads = [w for w in self._witness.in_state("loading") if w["spec"]["endpoint"] == one.endpoint]
            if loads:
                one.worker, one.at = loads[0]["spec"]["id"], loads[0]["since"]
            elif time.time() > deadline:
                raise Missed("it never came to load")
        # once it has read its orders they are for nobody else
        await asyncio.sleep(2.0)
        self._machine.order(one.endpoint)

    def _cold(self) -> list[str]:
        has_one = {worker["spec"]["endpoint"] for worker in self._witness.workers}
        return sorted(self._witness.endpoints.keys() - has_one - self._taken)

    # memory not returned

    async def _sleep_keeps_memory(self, one: Injection) -> None:
        await self._target(one, "ready", fits=self._will_sleep)
        one.at = time.time()
        self._machine.order(one.endpoint, Faults(memory_not_returned=True), one.at)
        await self._find_death(one, "sleep_failed", seconds=2 * FIND_SECONDS)
        if one.found_at is None:
            raise Missed("it was never told to sleep")

    def _is_alone(self, worker: Json) -> bool:
        """What is ordered for a model's engines meets all of them that run."""
        return bool(
            sum(other["spec"]["endpoint"] == worker["spec"]["endpoint"] for other in self._witness.workers) == 1
        )

    def _will_sleep(self, worker: Json) -> bool:
        model = self._machine.models[worker["spec"]["endpoint"]]
        return worker["can_sleep"] and not worker["in_flight"] and not model.steady and model.sleep != "off"

    async def _exit_keeps_memory(self, one: Injection) -> None:
        worker = await self._target(one, "ready")
        one.at = time.time()
        until = one.at + self._machine.pace.linger
        if not await asyncio.to_thread(self._machine.linger, one.worker, until):
            raise Missed("it was gone")
        await asyncio.to_thread(self._machine.kill, one.worker)
        await self._find_death(one, "killed")
        killed_as, one.found_as = one.found_as, ""
        least, cards = worker["spec"]["gpu_memory_mib"] // 2, set(worker["spec"]["gpus"])
        while time.time() < until:
            foreign = [gpu["memory_foreign_mib"] for gpu in self._witness.gpus if gpu["uuid"] in cards]
            if not one.found_as and min(foreign) >= least:
                one.found_at, one.found_as = time.time(), f"{killed_as}, {min(foreign)} MiB foreign"
            await self._witness.next_look()
        if not one.found_as:
            one.found_at = None

    # the manager

    async def _manager_killed(self, one: Injection) -> None:
        one.at = time.time()
        await asyncio.to_thread(self._machine.stack.project.crash, "worker_manager", "worker_manager")
        one.found_at, one.found_as = time.time(), "restarted by Docker"
