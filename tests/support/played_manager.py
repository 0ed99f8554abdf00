"""The worker manager's own rules in simulated time, on a machine where anything may go wrong.

`reconcile`, `steps`, `tracked` and `deadlines` are the manager's; the launcher, the engines, the cards and, unless a
test takes that over, the gateway's wishes are played here, from a seed.
"""

import random
from collections.abc import Callable

import msgspec

from worker_manager import actions as act
from worker_manager import causes, deadlines, reconcile, steps
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
)
from worker_manager.launchers.base import Unit, UnitKind
from worker_manager.supervisor import GPU_PASS_SECONDS, RETRY_SECONDS, WAITING_PASS_SECONDS

LIMITS = deadlines.Limits(load_seconds=100, sleep_seconds=20, wake_seconds=30, stop_seconds=10)
CARDS = ("GPU-0", "GPU-1")
TOTAL_MIB, PROMISE_MIB, ASLEEP_MIB = 1000, 450, 50
MOMENT = 0.1
KINDS = (FailureKind.UNKNOWN, FailureKind.KILLED, FailureKind.OUT_OF_MEMORY_AT_LOAD, FailureKind.BAD_FLAG)


def spec(number: int) -> WorkerSpec:
    cards = (CARDS[:1], CARDS[1:], CARDS, ())[number % 4]
    size = PROMISE_MIB if cards else None
    name = f"w{number}"
    return WorkerSpec(id=name, endpoint=name, model="local/tiny", served_names=(name,), gpus=cards, gpu_memory_mib=size)


class World:
    """A machine on which anything may go wrong until it is `calm`."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a simulation, no secret
        self.now, self.calm = 1_000_000.0, False
        self.known: dict[str, life.Tracked] = {}
        self.units: dict[str, Unit] = {}
        self.jobs: dict[str, tuple[float, Callable[[], None]]] = {}
        self.loaded_at: dict[str, float] = {}
        self.failed_ends: dict[str, int] = {}
        self.foreign = 0
        self.generation = 1
        self.specs = tuple(spec(number) for number in range(5))
        self.desired: DesiredSet | None = DesiredSet(generation=1, workers=self.specs)

    def run(self, seconds: float, look: Callable[[], None]) -> None:
        until = self.now + seconds
        while self.now < until:
            self.end_jobs()
            look()
            self.happen()
            self.look_around()
            self.now = self.next_moment()

    def next_moment(self) -> float:
        """As the supervisor sleeps: until the next deadline, an action's end, what the launcher tells, or a while."""
        waiting = any(known.state is WorkerState.WAITING for known in self.known.values())
        times = [self.now + (WAITING_PASS_SECONDS if waiting else GPU_PASS_SECONDS)]
        times += [at for at, _ in self.jobs.values()]
        times += [at for at in self.loaded_at.values() if at > self.now]
        if (deadline := deadlines.next_one(self.known, LIMITS, self.now)) is not None:
            times.append(max(self.now + 0.05, deadline + 0.01))
        return min(times)

    def odds(self, chance: float) -> bool:
        return not self.calm and self.chance.random() < chance

    def whim(self, *weights: float) -> int:
        """Which of several ends an action has: 0, the good one, where it is calm."""
        return 0 if self.calm else self.chance.choices(range(len(weights)), weights)[0]

    def cards_of(self, one: str) -> tuple[str, ...]:
        """The cards of a worker that exists or did."""
        return spec(int(one[1:])).gpus

    # what happens without anybody's doing

    def happen(self) -> None:
        for one, known in list(self.known.items()):
            unit = self.units.get(one)
            if one in self.jobs or unit is None:
                continue
            if known.state is WorkerState.LOADING and self.loaded_at.get(one, 0) <= self.now:
                ready = life.entered(known, WorkerState.READY, self.now)
                self.known[one] = life.judged(ready, ("", ""))
            if known.state in life.SERVED and self.odds(0.004):
                self.known[one] = life.condemned(known, broken(FailureKind.HUNG))
            if self.odds(0.006):
                self.units[one] = msgspec.structs.replace(unit, running=False, exit_code=1)
            elif self.odds(0.002):
                del self.units[one]
        self.wish()

    def wish(self) -> None:
        """The gateway's, and other programs' on the cards; sometimes the manager starts anew."""
        self.foreign = 0 if self.calm else self.chance.choice((self.foreign,) * 20 + (0, 300, 700))
        if self.odds(0.002):
            self.known, self.jobs, self.desired = {}, {}, None
        elif self.desired is None or self.odds(0.03):
            workers = self.specs if self.calm else [one for one in self.specs if self.chance.random() < 0.9]
            levels = {} if self.calm else {one.id: self.level() for one in workers if self.chance.random() < 0.5}
            self.generation += 1
            self.desired = DesiredSet(generation=self.generation, workers=tuple(workers), residencies=levels)

    def level(self) -> Residency:
        return self.chance.choice((Residency.HOT, Residency.ASLEEP_1, Residency.ASLEEP_2))

    def gpus(self) -> tuple[Gpu, ...]:
        found = []
        for index, uuid in enumerate(CARDS):
            uses = tuple(
                GpuUse(pid=number, memory_mib=self.holds(one), worker=one)
                for number, (one, unit) in enumerate(self.units.items())
                if unit.running and unit.worker is not None and uuid in unit.worker.gpus
            )
            used = self.foreign + sum(use.memory_mib for use in uses)
            facts = {"memory_total_mib": TOTAL_MIB, "memory_used_mib": used, "memory_foreign_mib": self.foreign}
            found.append(Gpu(index=index, uuid=uuid, name="card", users=uses, **facts))
        return tuple(found)

    def holds(self, one: str) -> int:
        known = self.known.get(one)
        return ASLEEP_MIB if known is not None and known.state is WorkerState.ASLEEP else PROMISE_MIB

    # what the manager does

    def look_around(self) -> None:
        for action in reconcile.reconcile(
            self.desired,
            self.known,
            self.units,
            busy=frozenset(self.jobs),
            gpus=self.gpus(),
            limits=LIMITS,
            now=self.now,
        ):
            after = steps.begun(action, self.known.get(action.id), self.now)
            self.put(action.id, after)
            self.begin(action)

    def put(self, one: str, known: life.Tracked | None) -> None:
        if known is None:
            self.known.pop(one, None)
        else:
            self.known[one] = known

    def begin(self, action: act.Action) -> None:
        match action:
            case act.Start():
                self.begin_start(action)
            case act.Collect() | act.Stop():
                self.begin_end(action)
            case act.Sleep() | act.Wake():
                self.begin_move(action)

    def job(self, one: str, seconds: float, end: Callable[[], None]) -> None:
        self.jobs[one] = self.now + seconds, end

    def end_jobs(self) -> None:
        for one, (at, end) in list(self.jobs.items()):
            if at <= self.now:
                del self.jobs[one]
                end()

    def begin_start(self, action: act.Start) -> None:
        one = action.id
        left = self.known[one].since + deadlines.CREATING_SECONDS - self.now
        match self.whim(6, 1, 1, 1, 1, 1):
            case 0:
                self.job(one, min(left, 10), lambda: self.started(action))
            case 1:
                self.job(one, min(left, 5), lambda: self.died(one, broken(FailureKind.LAUNCH_FAILED)))
            case 2:
                self.job(one, min(left, 5), lambda: self.put(one, life.postponed(self.known[one], self.now, "away")))
            case 3:
                self.job(one, min(left, 1), lambda: self.put(one, life.failed(self.known[one], broken(), self.now)))
            case 4:
                self.job(one, left, lambda: self.died(one, causes.of_launch(TimeoutError())))
            case _:
                self.job(one, min(left, RETRY_SECONDS), lambda: None)  # a bug of ours

    def started(self, action: act.Start) -> None:
        one = action.id
        self.units[one] = Unit(
            id=one, kind=UnitKind.WORKER, running=True, created_at=self.now, worker=action.spec, length=None
        )
        self.loaded_at[one] = self.now + (20, 20, 1e9)[self.whim(4, 1, 1)]
        self.put(one, life.entered(self.known[one], WorkerState.LOADING, self.now, "starting"))

    def died(self, one: str, failure: Failure) -> None:
        dead = self.known[one]
        self.put(one, life.died(dead, failure, self.now, dead.served or 0.0))

    def begin_end(self, action: act.Collect | act.Stop) -> None:
        """A launcher that fails is well again after two tries."""
        one = action.id
        failures = self.failed_ends.get(one, 0)
        if failures < 2 and self.odds(0.3):
            self.failed_ends[one] = failures + 1
            self.job(one, 30, lambda: self.maybe_vanish(one))
            return
        self.failed_ends[one] = 0
        longest = LIMITS.stop_seconds + deadlines.ENDING_SECONDS - 60 * failures
        self.job(one, 2 if self.calm else self.chance.choice((1, 15, longest - 2)), lambda: self.ended(action))

    def maybe_vanish(self, one: str) -> None:
        """A removal may have succeeded although the launcher said that it did not."""
        if self.odds(0.2):
            self.units.pop(one, None)

    def ended(self, action: act.Collect | act.Stop) -> None:
        self.units.pop(action.id, None)
        if isinstance(action, act.Stop):
            self.put(action.id, None)
        else:
            self.died(action.id, action.failure or broken(self.chance.choice(KINDS)))

    def begin_move(self, action: act.Sleep | act.Wake) -> None:
        one, falls = action.id, isinstance(action, act.Sleep)
        limit = LIMITS.sleep_seconds if falls else LIMITS.wake_seconds
        kind = FailureKind.SLEEP_FAILED if falls else FailureKind.WAKE_FAILED
        good = self.asleep if falls else self.awake
        match self.whim(5, 1, 1, 1):
            case 0:
                self.job(one, 3, lambda: good(one))
            case 1:
                self.job(one, limit, lambda: self.put(one, life.condemned(self.known[one], broken(kind))))
            case 2:
                self.job(one, 10, lambda: self.put(one, life.busy(self.known[one], self.now, "requests")))
            case _:
                self.job(one, RETRY_SECONDS, lambda: None)

    def asleep(self, one: str) -> None:
        self.put(one, life.asleep(self.known[one], self.known[one].level, SleepFacts(), self.now))

    def awake(self, one: str) -> None:
        self.put(one, life.entered(self.known[one], WorkerState.READY, self.now))


def broken(kind: FailureKind = FailureKind.UNKNOWN) -> Failure:
    return Failure(kind=kind, message="it broke", hint="mend it")


class Watch:
    """Asserts at each moment that nothing has lasted too long."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: set[WorkerState] = set()

    def __call__(self) -> None:
        world = self.world
        if world.desired is None:
            return  # nothing is decided before the gateway has said what should exist
        for known in world.known.values():
            self.seen.add(known.state)
            ends = deadlines.of(known, LIMITS)
            assert ends is None or world.now <= ends + MOMENT, known
            if known.state is WorkerState.WAITING and known.reason.startswith(life.TURN):
                self.look_at_turn(known)

    def look_at_turn(self, known: life.Tracked) -> None:
        """Whoever waits for a turn was shown at the last look whom it waits for, and that one has a deadline."""
        ahead = known.reason.removeprefix(f"{life.TURN}: ").split()[0]
        assert ahead != known.spec.id
        assert set(self.world.cards_of(ahead)) & set(known.spec.gpus)
