"""Records of use on their way to the database: taken in no time, written in batches, kept while it takes none."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

import structlog

from gateway.database.connection import DatabaseError
from gateway.types import Used
from gateway.usage.store import UsageStore

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.5
"""How long records gather before they are written: what a `kill -9` may cost at the most, but for the write itself."""
BATCH = 2000
"""Records in one transaction: others who want to write wait for some milliseconds."""
LIMIT = 50_000
"""Records that wait while the database takes none, some 25 MB; what comes on top is dropped and counted."""
RETRY_SECONDS = 5.0
STOP_SECONDS = 5.0
"""For the last batches when the gateway stops."""
COMPLAINT_SECONDS = 60.0

DAY_SECONDS = 86_400.0
PRUNED = 500
"""Old requests that are deleted in one transaction."""
PRUNE_PAUSE_SECONDS = 0.1


class Recorder:
    """The queue and the task that empties it. Only that task writes, and it is never cancelled while it does."""

    def __init__(self, store: UsageStore, *, on_drop: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._on_drop = on_drop
        self._waiting: deque[Used] = deque()
        self._arrived = asyncio.Event()
        self._hurry = asyncio.Event()
        self._asked: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._complained = -COMPLAINT_SECONDS
        self.failing = False
        """Whether the last write failed."""

    @property
    def unwritten(self) -> int:
        """How many records wait."""
        return len(self._waiting)

    def record(self, used: Used) -> None:
        """Take a record. Never waits and never fails: the queue is full only if the database has failed for long."""
        if len(self._waiting) >= LIMIT:
            self._on_drop()
            self._complain("usage is not recorded: the queue is full", dropped=used.request_id)
            return
        if not self._waiting:
            self._arrived.set()
        self._waiting.append(used)

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="usage")

    async def flush(self) -> None:
        """Return when what was recorded so far is written, or cannot be."""
        if not self._waiting or self._task is None or self._task.done():
            return
        done = asyncio.get_running_loop().create_future()
        self._asked.append(done)
        self._arrived.set()
        self._hurry.set()
        await done

    def try_now(self) -> None:
        """The database is well again: do not wait for the next try."""
        if self.failing:
            self._hurry.set()

    async def stop(self) -> None:
        """Write what is left, within a bound; what cannot be written by then is lost and said to be."""
        if self._task is None:
            return
        self._stopping = True
        self._arrived.set()
        self._hurry.set()
        await asyncio.wait({self._task}, timeout=STOP_SECONDS)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._waiting:
            log.error("usage records are lost: the database took no writes", lost=len(self._waiting))

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            await self._pause(GATHER_SECONDS)
            asked, self._asked = self._asked, []
            fine = await self._write_all()
            for done in asked:
                if not done.done():
                    done.set_result(None)
            if self._stopping:
                return
            if not fine:
                await self._pause(RETRY_SECONDS)
            elif not self._waiting and not self._asked:
                self._arrived.clear()

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not while somebody waits for us."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        self._hurry.clear()

    async def _write_all(self) -> bool:
        """Write every record that is here now. False if the database failed: all that is not written waits on."""
        left = len(self._waiting)
        while left > 0:
            batch = list(islice(self._waiting, min(BATCH, left)))
            try:
                await self._store.add(batch)
            except DatabaseError as problem:
                self.failing = True
                self._complain("usage cannot be written, and is kept in memory", problem=str(problem))
                return False
            self.failing = False
            for _ in batch:
                self._waiting.popleft()
            left -= len(batch)
        return True

    def _complain(self, what: str, **facts: str) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAINT_SECONDS:
            self._complained = now
            log.error(what, waiting=len(self._waiting), **facts)


async def prune_daily(store: UsageStore, days: float, clock: Callable[[], float] = time.time) -> None:
    """Delete requests older than so many days, now and every day; for ever. Their sums stay."""
    while True:
        pause = DAY_SECONDS
        try:
            if await store.prune(clock() - days * DAY_SECONDS, PRUNED) >= PRUNED:
                pause = PRUNE_PAUSE_SECONDS  # there may be more
        except DatabaseError as problem:
            log.warning("old usage could not be deleted", problem=str(problem))
        await asyncio.sleep(pause)
