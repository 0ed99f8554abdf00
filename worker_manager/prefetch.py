"""Reads weights into the page cache ahead of a start: while others still make room, and while the engine is imported.

One model at a time, by a unit of its own (`jobs.read_ahead`): what is read is charged to the container that reads, and
the manager's own is small. Nothing depends on it: what fails is logged, and the engine reads its weights itself. A
reader ends when its model is served or no longer wanted; one that an earlier manager left is found by its unit.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import structlog

from worker_manager.jobs.read_ahead import weight_bytes
from worker_manager.launchers.base import Launcher, LauncherError, Unit, UnitKind
from worker_manager.launchers.model_folder import in_time

LEAST_BYTES = 64 * 1024 * 1024
"""Less is read before a reader has begun."""
STOP_SECONDS = 2.0
LOG_LINES = 5

logger = structlog.get_logger()


class Begin(msgspec.Struct, frozen=True):
    """Start a reader of this model."""

    model: str


class End(msgspec.Struct, frozen=True):
    """Remove this reader; `done`: its model needs no other one."""

    unit: Unit
    done: bool


class Done(msgspec.Struct, frozen=True, tag_field="event", tag="done"):
    """The last line of a reader."""

    bytes_read: int
    bytes_total: int


def step(readers: Iterable[Unit], wanted: tuple[str, ...], done: frozenset[str]) -> Begin | End | None:
    """What follows, one step at a time: first what is over or in vain ends, then the next model is read. Pure."""
    running = list(readers)
    for unit in running:
        if not unit.running or unit.model not in wanted:
            return End(unit, done=not unit.running)
    if running:
        return None
    return next((Begin(model) for model in wanted if model not in done), None)


class Prefetch:
    """The readers of one manager. All methods belong to one event loop."""

    def __init__(
        self, launcher: Launcher, *, models: Path, enabled: bool, reserve_mib: int, look_again: Callable[[], None]
    ) -> None:
        """`reserve_mib`: main memory that is left alone; `look_again` is called when a step has been taken."""
        self._launcher = launcher
        self._look_again = look_again
        self._models = models
        self._enabled = enabled
        self._reserve_mib = reserve_mib
        self._done: frozenset[str] = frozenset()
        self._task: asyncio.Task[None] | None = None

    def look(self, units: Iterable[Unit], wanted: tuple[str, ...]) -> None:
        """Take a listing of the launcher and the models that are wanted soon, the most urgent first."""
        wanted = wanted if self._enabled else ()
        self._done &= frozenset(wanted)  # who is wanted again later is read again: its pages may be gone
        if self._task is not None:
            return
        readers = [unit for unit in units if unit.kind is UnitKind.READER]
        if (following := step(readers, wanted, self._done)) is not None:
            self._task = asyncio.create_task(self._take(following), name="prefetch")

    async def close(self) -> None:
        """End what is under way; a reader that runs goes on and is found again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _take(self, following: Begin | End) -> None:
        try:
            await (self._begin(following.model) if isinstance(following, Begin) else self._end(following))
        except LauncherError as error:
            logger.warning("prefetch_failed", cause=str(error))
            if isinstance(following, Begin):
                self._done |= {following.model}  # the engine reads it itself
        else:
            self._look_again()
        finally:
            self._task = None

    async def _begin(self, model: str) -> None:
        size = await in_time(lambda: weight_bytes(self._models / model))
        if size >= LEAST_BYTES:
            await self._launcher.start_reader(reader_id(model), model, self._reserve_mib)
            logger.info("prefetch_begins", model=model, mib=size // 2**20)
        else:
            self._done |= {model}

    async def _end(self, ending: End) -> None:
        unit = ending.unit
        if ending.done and await self._runs(unit.id):
            return  # the listing was taken between its creation and its start
        if unit.running:
            await self._launcher.stop(unit.id, STOP_SECONDS)
        lines = await self._launcher.log(unit.id, LOG_LINES)
        await self._launcher.remove(unit.id)
        read, total = told(lines)
        logger.info("prefetch_ended", model=unit.model, read_mib=read // 2**20, of_mib=total // 2**20)
        if ending.done:
            self._done |= {unit.model}

    async def _runs(self, unit_id: str) -> bool:
        return any(unit.running for unit in await self._launcher.units() if unit.id == unit_id)


def told(lines: Iterable[str]) -> tuple[int, int]:
    """What a reader says that it has read and what there is, bytes; zeros where it was ended before it could."""
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError):
            done = msgspec.json.decode(line, type=Done)
            return done.bytes_read, done.bytes_total
    return 0, 0


def reader_id(model: str) -> str:
    """The same unit for the same model; fit for a container's name."""
    return f"read-{hashlib.sha256(model.encode()).hexdigest()[:12]}"
