"""The loop that makes the observed set the desired set. It alone owns the workers' state.

Each pass lists the units, asks `reconcile` what follows, and starts the actions as tasks, so that a slow stop of one
worker never holds up another. Events of the launcher start a pass at once; without any, one runs every ten seconds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from worker_manager import actions as act
from worker_manager import causes, deadlines, room, steps
from worker_manager import reconcile as rules
from worker_manager import tracked as life
from worker_manager.adapters import Adapters
from worker_manager.board import Board
from worker_manager.contract import DesiredSet, Failure, Gpu, ObservedWorker, WorkerSpec, WorkerState
from worker_manager.engines.canary import Rhythm
from worker_manager.first_look import FirstLook
from worker_manager.keeper import Keeper
from worker_manager.launchers.base import Launcher, LauncherError, LauncherUnavailableError, Unit, UnitKind, in_time
from worker_manager.measuring import Measurements
from worker_manager.policy import PolicyRefusal
from worker_manager.refusals import Refusals
from worker_manager.sleeper import Sleeper
from worker_manager.tracked import Tracked

RELIST_SECONDS = 10.0
GPU_PASS_SECONDS = 2.0
"""Between two looks where there are GPUs: what other programs take of them tells nobody by itself."""
WAITING_PASS_SECONDS = 1.0
RETRY_SECONDS = 1.0
USELESS_STOP_SECONDS = 3.0
"""For an engine that has no request to finish: vLLM does not listen to TERM while it loads."""
LOG_LINES = 1000
LOG_LOOKS = 60
"""Looks at the log of an engine that loads, within the time that it has: whether it has given up and does not end."""

logger = structlog.get_logger()


class StaleGenerationError(Exception):
    """A desired set came that is older than the one taken before."""

    def __init__(self, sent: int, taken: int) -> None:
        super().__init__(f"desired set {sent} is not newer than {taken}, which was taken before")


class Supervisor:
    """Runs the workers of one launcher. All methods belong to one event loop."""

    def __init__(
        self,
        launcher: Launcher,
        *,
        engines: Path,
        models: Path,
        limits: deadlines.Limits,
        canary: Rhythm,
        sleeper: Sleeper,
        gpus: Callable[[dict[str, Unit]], Awaitable[tuple[Gpu, ...]]],
        refusals: Refusals,
        on_units: Callable[[list[Unit]], None],
        on_change: Callable[[], None],
    ) -> None:
        """`gpus` reads the inventory, `on_units` gets each listing, `on_change` hears of every change of a state."""
        self.generation = 0
        self.gpus: tuple[Gpu, ...] = ()
        self._launcher = launcher
        self._limits = limits
        self._stop_seconds = limits.stop_seconds
        self._read_gpus = gpus
        self._refusals = refusals
        self._on_units = on_units
        self._on_change = on_change
        self._desired: DesiredSet | None = None
        self._units: dict[str, Unit] = {}
        self._actions: dict[str, asyncio.Task[None]] = {}
        self._measurements = Measurements(launcher)
        self._lengths: Mapping[str, int] = {}
        self._wake = asyncio.Event()
        self._failing = False
        self._board = Board()
        self._tracked, self._set = self._board.workers, self._board.set
        self.first_look = FirstLook(self._tracked)
        self._keeper = Keeper(
            self._board,
            engines=engines,
            sleeper=sleeper,
            canary=canary,
            unit=self._unit,
            log=lambda worker: launcher.log(worker, LOG_LINES),
            log_seconds=limits.load_seconds / LOG_LOOKS,
            on_ready=self._measure,
            look_again=self.wake,
        )
        self._adapters = Adapters(
            self._board, refusals, engines=engines, models=models, inside=launcher.adapters_inside, on_change=on_change
        )
        self._board.listen(self._changed)

    async def run(self) -> None:
        """Until cancelled; then all tasks end and the workers live on."""
        feed = asyncio.create_task(self._follow_events(), name="launcher-events")
        try:
            while True:
                self._wake.clear()
                await self._pass_safely()
                await self._sleep()
        finally:
            tasks = [feed, *self._actions.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._keeper.close()
            await self._adapters.close()

    def wake(self) -> None:
        """Something may have changed: look at once."""
        self._wake.set()

    def take(self, desired: DesiredSet) -> None:
        """Make this the desired set. Raises `StaleGenerationError`."""
        is_other = desired.generation == self.generation and desired != self._desired
        if desired.generation < self.generation or is_other:
            raise StaleGenerationError(desired.generation, self.generation)
        self._desired = desired
        self._keeper.forbid(desired.sleepless)
        self.generation = desired.generation
        self._adapters.want(desired.adapters)
        self._on_change()
        self.wake()

    def running(self) -> tuple[WorkerSpec, ...]:
        """What all workers are whose engines run."""
        return tuple(known.spec for known in self._tracked.values() if known.state in life.ALIVE)

    def end(self, worker: str, failure: Failure) -> None:
        """Replace a worker's engine, for this reason."""
        known = self._tracked.get(worker)
        if known is not None and known.state in life.ALIVE:
            self._set(worker, life.condemned(known, failure))
            self.wake()

    def observed(self) -> tuple[ObservedWorker, ...]:
        """Every worker that exists or should."""
        held = {worker: room.held(self.gpus, worker) for worker in self._tracked}
        return tuple(
            life.observed(
                known,
                max(held[worker].values(), default=None),
                self._measurements.of(worker),
                None if self._adapters.is_unasked(worker) else self._adapters.of(worker),
                self._units[worker].created_at if worker in self._units else 0.0,
            )
            for worker, known in sorted(self._tracked.items())
        )

    async def held(self, worker: str) -> dict[str, int]:
        """MiB that a worker holds on each card this instant, as far as NVML tells."""
        return room.held(await self._read_gpus(self._units), worker)

    def coming(self) -> tuple[str, ...]:
        """Models whose weights will be read: of workers on their way up, then of those that wait for room."""
        if self._desired is None:
            return ()
        states = {worker: known.state for worker, known in self._tracked.items()}
        starts = [
            spec.model
            for spec in self._desired.workers
            if spec.id not in self._desired.residencies and states.get(spec.id, WorkerState.WAITING) in life.COMING
        ]
        return tuple(dict.fromkeys((*starts, *self._desired.soon)))

    async def log(self, worker: str, lines: int) -> tuple[str, ...] | None:
        """The last lines of a worker's log; those of its last death if it has no unit; None if unknown."""
        known = self._tracked.get(worker)
        if known is None:
            return None
        if worker in self._units:
            return await self._launcher.log(worker, lines)
        return known.failure.log_tail[-lines:] if known.failure is not None else ()

    # the loop

    async def _sleep(self) -> None:
        waiting = any(known.state is WorkerState.WAITING for known in self._tracked.values())
        seconds = GPU_PASS_SECONDS if self.gpus else RELIST_SECONDS
        if waiting:
            seconds = WAITING_PASS_SECONDS
        if self._failing:
            seconds = RETRY_SECONDS
        deadline = deadlines.next_one(self._tracked, self._limits, time.time())
        if deadline is not None:
            seconds = min(seconds, max(0.05, deadline - time.time() + 0.01))
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _pass_safely(self) -> None:
        """One pass; a launcher that does not answer is logged once and asked again."""
        try:
            await self._pass()
        except LauncherError as error:
            if not self._failing:
                logger.warning("launcher_unavailable", cause=str(error))
            self._failing = True
            self.first_look.failed(str(error))
        except Exception:
            # a task root: a bug in one pass must not end the supervision of workers
            logger.exception("pass_failed")
            self._failing = True
        else:
            if self._failing:
                logger.info("launcher_available")
            self._failing = False

    async def _pass(self) -> None:
        busy = set(self._actions)  # what is under way while we list may be seen half done
        units = await self._launcher.units()
        self._on_units(units)
        self._units = {unit.id: unit for unit in units if unit.kind is UnitKind.WORKER}
        before, self.gpus = self.gpus, await self._read_gpus(self._units)
        actions = rules.reconcile(
            self._desired,
            self._tracked,
            self._units,
            busy=frozenset(busy | self._actions.keys()),
            gpus=self.gpus,
            limits=self._limits,
            now=time.time(),
        )
        for action in actions:
            self._act(action)
        self.first_look.listed()
        if not room.is_alike(before, self.gpus):
            self._on_change()

    def _act(self, action: act.Action) -> None:
        """The state changes at once; what calls the launcher or the engine becomes a task."""
        known = self._tracked.get(action.id)
        after = steps.begun(action, known, time.time(), self._lengths)
        self._set(action.id, after)
        match action:
            case act.Adopt(id=worker, running=running):
                logger.info("worker_adopted", worker=worker, running=running)
            case act.Track():
                self.wake()
            case act.Stop(id=worker):
                self._spawn(worker, self._stop(worker, self._grace(known)))
            case _ if after is not None and known is not None:
                self._begin(action, known, after)

    def _begin(self, action: act.Action, known: Tracked, after: Tracked) -> None:
        match action:
            case act.Start(id=worker, spec=spec):
                self._spawn(worker, self._start(known, spec))
            case act.Collect(id=worker):
                self._spawn(worker, self._collect(action))
            case act.Sleep(id=worker):
                self._spawn(worker, self._keeper.sleep(after, self._units[worker]))
            case act.Wake(id=worker):
                self._spawn(worker, self._keeper.wake(after, self._units[worker]))

    def _spawn(self, worker: str, action: Awaitable[None]) -> None:
        self._actions[worker] = asyncio.create_task(self._guard(worker, action), name=f"action-{worker}")

    async def _guard(self, worker: str, action: Awaitable[None]) -> None:
        """A failed action is logged and decided anew by the next pass."""
        try:
            await action
        except LauncherError as error:
            logger.warning("action_failed", worker=worker, cause=str(error))
            await asyncio.sleep(RETRY_SECONDS)
        except Exception:
            # a task root: the worker is decided anew, the others do not notice
            logger.exception("action_failed", worker=worker)
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._actions.pop(worker, None)
            self.wake()

    # actions

    async def _start(self, known: Tracked, spec: WorkerSpec) -> None:
        logger.info("worker_starts", worker=spec.id, endpoint=spec.endpoint, gpus=spec.gpus)
        try:
            sleep = self._keeper.may_sleep(spec)
            # what is left of it after earlier tries that nobody can account for
            async with asyncio.timeout(deadlines.CREATING_SECONDS - (time.time() - self._tracked[spec.id].since)):
                await self._launcher.start_worker(spec, self.generation, length=known.shortened, sleep=sleep)
        except PolicyRefusal as refusal:
            failure = Failure(kind=refusal.kind, message=refusal.message, hint=refusal.hint, at=time.time())
            self._refusals.note("policy", f"worker {spec.id}: {refusal.message}")
            self._set(spec.id, life.failed(known, failure, time.time()))
        except LauncherUnavailableError as error:
            logger.warning("worker_start_postponed", worker=spec.id, cause=str(error))
            self._set(spec.id, life.postponed(known, time.time(), str(error)))
        except (LauncherError, OSError) as error:
            failure = causes.of_launch(error)
            logger.warning("worker_start_failed", worker=spec.id, cause=failure.message)
            self._set(spec.id, life.died(known, failure, time.time()))
        else:
            loading = life.entered(self._tracked[spec.id], WorkerState.LOADING, time.time(), "starting")
            self._set(spec.id, self._keeper.starting(loading))

    async def _collect(self, action: act.Collect) -> None:
        try:
            async with in_time(self._stop_seconds + deadlines.ENDING_SECONDS):
                failure = await self._diagnosed(action)
                if action.unit is not None:
                    # the log goes with the unit: what it said has to outlive a removal that fails
                    self._set(action.id, life.condemned(self._tracked[action.id], failure))
                    await self._launcher.remove(action.id)
        except LauncherError as error:
            self._board.say(action.id, f"died, and what is left of it can't be removed yet: {error}")
            raise
        self._keeper.forget(action.id)
        dead = self._tracked[action.id]
        logger.warning("worker_died", worker=action.id, kind=failure.kind, cause=failure.message)
        after = life.died(dead, failure, time.time(), dead.served or 0.0)
        if after.shortened != dead.shortened:
            logger.warning("worker_repaired", worker=action.id, max_model_len=after.shortened)
        self._set(action.id, after)

    async def _diagnosed(self, action: act.Collect) -> Failure:
        """End what still runs, and read why it died. Raises `LauncherError`."""
        lines: tuple[str, ...] = ()
        if action.unit is not None:
            if action.unit.running:
                await self._launcher.stop(action.id, 0.0)
            lines = await self._launcher.log(action.id, LOG_LINES)
        dead = self._tracked[action.id]
        unable = None if dead.served else self._keeper.blame_sleep(dead, lines)
        told = msgspec.structs.replace(action, failure=unable or action.failure)
        return causes.of_death(told, lines, was_ready=bool(dead.served), now=time.time())

    async def _stop(self, worker: str, grace_seconds: float) -> None:
        try:
            async with in_time(self._stop_seconds + deadlines.ENDING_SECONDS):
                await self._launcher.stop(worker, grace_seconds)
                await self._launcher.remove(worker)
        except LauncherError as error:
            self._board.say(worker, f"can't be stopped yet: {error}")
            raise
        self._keeper.forget(worker)
        logger.info("worker_stopped", worker=worker)
        self._set(worker, None)

    def _grace(self, known: Tracked | None) -> float:
        """Time to finish requests, for an engine that may have some; none for one that can't be trusted with them."""
        if known is not None and known.condemned is not None:
            return 0.0
        useful = known is None or known.state in (WorkerState.READY, WorkerState.STOPPING)
        return self._stop_seconds if useful else min(USELESS_STOP_SECONDS, self._stop_seconds)

    def _unit(self, worker: str) -> Unit | None:
        return self._units.get(worker)

    def _changed(self, worker: str, known: Tracked | None) -> None:
        if known is not None:
            self._lengths = life.remembered(self._lengths, known)
        if known is None or known.state not in life.SERVED:
            self._measurements.forget(worker)
        self.first_look.check()
        self._on_change()

    async def _measure(self, worker: str) -> None:
        """Learn what the start has shown; the worker serves meanwhile."""
        unit = self._units.get(worker)
        gpus = await self._read_gpus(self._units)
        if await self._measurements.read(worker, unit.image if unit is not None else "", gpus):
            self._on_change()

    async def _follow_events(self) -> None:
        async for event in self._launcher.events():
            logger.debug("unit_event", unit=event.id, what=event.what)
            self.wake()
