"""Speaks to the engines that run: when they serve, whether they still do, to let them sleep and to wake them.

What follows from it stands on the board; what is no good is condemned there, and the supervisor replaces it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from worker_manager import causes
from worker_manager import tracked as life
from worker_manager.board import Board
from worker_manager.contract import ENGINE_SOCKET, Failure, FailureKind, Residency, WorkerSpec, WorkerState
from worker_manager.engines import found, readiness, sleep_rules
from worker_manager.engines.canary import Canary, Rhythm, Verdict
from worker_manager.engines.diagnosis import has_given_up
from worker_manager.launchers.base import LauncherError, Unit
from worker_manager.sleeper import Sleeper, SleepFailedError, StillBusyError
from worker_manager.tracked import Tracked

PROBE_SECONDS = 0.25
PROBE_MAX_SECONDS = 2.0

logger = structlog.get_logger()


class Keeper:
    """One task for each worker in LOADING or READY; sleeps and wakes are the supervisor's actions."""

    def __init__(
        self,
        board: Board,
        *,
        engines: Path,
        sleeper: Sleeper,
        canary: Rhythm,
        unit: Callable[[str], Unit | None],
        log: Callable[[str], Awaitable[tuple[str, ...]]],
        log_seconds: float,
        on_ready: Callable[[str], Awaitable[None]],
        look_again: Callable[[], None],
    ) -> None:
        """`unit` gives a worker's unit as last listed, None before that.

        `log` reads what an engine has said; while it loads that is looked at every `log_seconds`.
        `on_ready` hears of an engine that has loaded, `look_again` has the supervisor act on what was condemned.
        """
        self._board = board
        self._workers = board.workers
        self._engines = engines
        self._sleeper = sleeper
        self._rhythm = canary
        self._unit = unit
        self._log = log
        self._log_seconds = log_seconds
        self._on_ready = on_ready
        self._look_again = look_again
        self._watches: dict[str, tuple[WorkerState, asyncio.Task[None]]] = {}
        self._routes: dict[str, str] = {}
        board.listen(self._tend)

    async def close(self) -> None:
        """End all tasks; the engines live on."""
        tasks = [task for _, task in self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def starting(self, known: Tracked) -> Tracked:
        """A worker whose engine starts: whether it can sleep is open again, but for what is known of its kind."""
        return self._reminded(msgspec.structs.replace(known, no_sleep=None, no_deep_sleep=None))

    def may_sleep(self, spec: WorkerSpec) -> bool:
        """Whether its engine is started so that it can."""
        return not self._sleeper.judge(spec)[0]

    def forbid(self, sleepless: Mapping[str, str]) -> None:
        """These workers must not sleep, and why."""
        if self._sleeper.forbid(sleepless):
            self._remind_all()

    def blame_sleep(self, known: Tracked, lines: Sequence[str]) -> Failure | None:
        """The failure of an engine that could not start with sleep mode; the next one of its kind starts without."""
        why = sleep_rules.start_refusal(lines) if self.may_sleep(known.spec) else ""
        if not why:
            return None
        self._sleeper.remember(known.spec, Residency.ASLEEP_1, why)
        self._remind_all()
        return causes.of_verdict(Verdict(kind=FailureKind.SLEEP_FAILED, message=why))

    def forget(self, worker: str) -> None:
        """Its engine is gone."""
        self._routes.pop(worker, None)
        self._sleeper.forget(worker)

    # sleep

    async def sleep(self, known: Tracked, unit: Unit) -> None:
        """Let a worker in SLEEPING fall asleep: to ASLEEP, back to READY for its requests, or condemned."""
        try:
            facts = await self._sleeper.sleep(known.spec, unit.created_at, known.level)
        except StillBusyError as error:
            self._board.set(unit.id, life.busy(self._workers[unit.id], time.time(), f"can't sleep yet: {error}"))
        except SleepFailedError as error:
            self._sleep_failed(known, FailureKind.SLEEP_FAILED, error)
        else:
            logger.info("worker_asleep", worker=unit.id, level=known.level, freed_mib=facts.freed_mib)
            self._board.set(unit.id, life.asleep(self._workers[unit.id], known.level, facts, time.time()))

    async def wake(self, known: Tracked, unit: Unit) -> None:
        """Wake a worker in WAKING: to READY, or condemned."""
        try:
            facts = await self._sleeper.wake(known.spec, unit.created_at, known.level, known.sleep)
        except SleepFailedError as error:
            self._sleep_failed(known, FailureKind.WAKE_FAILED, error)
        else:
            logger.info("worker_awake", worker=unit.id, seconds=facts.wake_seconds)
            ready = life.entered(self._workers[unit.id], WorkerState.READY, time.time())
            self._board.set(unit.id, msgspec.structs.replace(ready, level=Residency.HOT, sleep=facts))

    def _reminded(self, known: Tracked) -> Tracked:
        """The same worker, with what speaks against its sleep by now."""
        light, deep = self._sleeper.judge(known.spec)
        return msgspec.structs.replace(
            known,
            no_sleep=light or known.no_sleep,
            no_deep_sleep=deep or known.no_deep_sleep,
            broken_sleep=self._sleeper.broken(known.spec),
        )

    def _remind_all(self) -> None:
        for worker, other in list(self._workers.items()):
            self._board.set(worker, self._reminded(other))

    def _sleep_failed(self, known: Tracked, kind: FailureKind, error: SleepFailedError) -> None:
        """The engine can't be trusted any more, and others of its image and model not with sleep."""
        if error.lasting:
            self._sleeper.remember(known.spec, error.level or known.level, f"it failed before: {error}")
            self._remind_all()
        failure = causes.of_verdict(Verdict(kind=kind, message=str(error)))
        self._board.set(known.spec.id, life.condemned(self._workers[known.spec.id], failure))
        self._look_again()

    # readiness, and what comes after

    async def _probe(self, worker: str) -> None:
        """Ask the engine until it serves; ended from outside when the worker leaves LOADING."""
        pause, stillborn = PROBE_SECONDS, Stillbirth(self._log, self._log_seconds)
        while True:
            if (failure := await stillborn.look(worker)) is not None:
                logger.warning("worker_stillborn", worker=worker, kind=failure.kind, cause=failure.message)
                self._board.set(worker, life.condemned(self._workers[worker], failure))
                self._look_again()
                return
            spec = self._workers[worker].spec
            is_found = self._workers[worker].reason == life.FOUND_RUNNING
            climb = found.probe_found if is_found else readiness.probe
            answer = await climb(self._socket(worker), spec.served_names[0], may_sleep=bool(spec.gpus))
            unit = self._unit(worker)
            if (answer.ready or answer.asleep) and unit is not None:
                await self._arrived(self._workers[worker], unit, answer)
                return
            known, now = self._workers[worker], time.time()
            loading = life.entered(known, WorkerState.LOADING, now, answer.reason)
            self._board.set(worker, life.worked(known, now) if answer.busy else loading)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, PROBE_MAX_SECONDS)

    async def _arrived(self, known: Tracked, unit: Unit, answer: readiness.Readiness) -> None:
        """The engine serves, or was found asleep: to READY or ASLEEP; replaced if its sleep can't be trusted."""
        worker, created_at = unit.id, unit.created_at
        try:
            if answer.asleep:
                level, facts = await self._sleeper.found_asleep(known.spec, created_at)
                self._routes[worker] = await self._sleeper.route(worker, created_at)
                state = life.asleep(self._workers[worker], level, facts, time.time())
                self._board.set(worker, self._reminded(life.judged(state, self._sleeper.judge(known.spec))))
                return
            why_not = await self._sleeper.introduce(known.spec, created_at, answer.route)
        except SleepFailedError as error:
            kind = FailureKind.SLEEP_FAILED if answer.asleep else FailureKind.WAKE_FAILED
            self._sleep_failed(known, kind, error)
            return
        light, deep = self._sleeper.judge(known.spec)
        now, self._routes[worker] = time.time(), answer.route
        logger.info("worker_ready", worker=worker, seconds=round(now - known.since, 3), no_sleep=why_not or None)
        ready = life.entered(self._workers[worker], WorkerState.READY, now)
        self._board.set(worker, self._reminded(life.judged(ready, (why_not or light, why_not or deep))))
        await self._on_ready(worker)

    async def _listen_for_canary(self, worker: str) -> None:
        """Ended from outside when the worker leaves READY."""
        name = self._workers[worker].spec.served_names[0]
        verdict = await Canary(self._socket(worker), name, self._routes.get(worker, ""), self._rhythm).watch()
        logger.warning("worker_hung", worker=worker, kind=verdict.kind, cause=verdict.message)
        self._board.set(worker, life.condemned(self._workers[worker], causes.of_verdict(verdict)))
        self._look_again()

    def _socket(self, worker: str) -> Path:
        return self._engines / worker / ENGINE_SOCKET

    def _tend(self, worker: str, known: Tracked | None) -> None:
        """A probe runs exactly while the worker is LOADING, a canary while it is READY."""
        state = known.state if known is not None else None
        before = self._watches.get(worker)
        if before is not None and (before[0] is not state or before[1].done()):
            if before[1] is not asyncio.current_task():
                before[1].cancel()
            del self._watches[worker]
        if worker in self._watches:
            return
        if state is WorkerState.LOADING:
            self._watch(worker, state, self._probe(worker))
        elif state is WorkerState.READY and self._rhythm.interval > 0:
            self._watch(worker, state, self._listen_for_canary(worker))

    def _watch(self, worker: str, state: WorkerState, watching: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(watching, name=f"{state}-{worker}")
        task.add_done_callback(lambda ended: self._watched(worker, ended))
        self._watches[worker] = state, task

    def _watched(self, worker: str, task: asyncio.Task[None]) -> None:
        """A watch that a bug has ended begins again: a worker that nobody watches would never be found hung."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        logger.error("watch_broke", worker=worker, watch=task.get_name(), cause=repr(error))
        loop = asyncio.get_running_loop()
        loop.call_later(PROBE_MAX_SECONDS, lambda: self._tend(worker, self._workers.get(worker)))


class Stillbirth:
    """Finds an engine whose log says that it has given up, and whose processes are there all the same.

    It counts at the second look: most end by themselves in between.
    """

    def __init__(self, log: Callable[[str], Awaitable[tuple[str, ...]]], seconds: float) -> None:
        self._log = log
        self._seconds = seconds
        self._looked_at = time.monotonic()
        self._has_given_up = False

    async def look(self, worker: str) -> Failure | None:
        """Why it has to be ended; None where it goes on loading, or it is too early to look again."""
        if time.monotonic() - self._looked_at < self._seconds:
            return None
        before, self._looked_at = self._has_given_up, time.monotonic()
        try:
            lines = await self._log(worker)
        except LauncherError:
            return None  # another time
        self._has_given_up = has_given_up(lines)
        return causes.of_stillbirth(lines, time.time()) if before and self._has_given_up else None
