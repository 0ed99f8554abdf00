"""Captured requests on their way to the database: taken in no time, redacted in a thread, written in batches.

Unredacted text waits here, in memory and in bounds, and nowhere else.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import structlog

from gateway.capture.store import Captured, CaptureStore, StoredCapture
from gateway.database.connection import DatabaseError
from gateway.settings import Settings
from gateway.types import Sent

log = structlog.get_logger(__name__)

GATHER_SECONDS = 1.0
BATCH = 50
WAITING_BYTES = 16 * 1024 * 1024
"""Of requests that are not written yet; what comes on top is not captured."""
PRUNE_SECONDS = 600.0
STOP_SECONDS = 5.0


def finished(sent: Sent, characters: int) -> Captured:
    """Redacted, and each text cut to so many characters."""
    # only a Hostler that captures pays for its tables
    from gateway.capture.redact import redacted_json, redacted_stream  # noqa: PLC0415

    answer = redacted_stream(sent.answer) if sent.streamed else redacted_json(sent.answer)
    prompt = redacted_json(sent.prompt)
    facts = (sent.at, sent.key_id, sent.request_id, sent.endpoint, sent.path, sent.status)
    return Captured(*facts, prompt[:characters], answer[:characters])


class Captures:
    """Which keys are captured, the queue, and the task that empties it."""

    def __init__(self, store: CaptureStore, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._days = settings.capture_days
        self._text_characters = settings.capture_kib * 1024
        self._all_characters = settings.capture_mib * 1024 * 1024
        self._clock = clock
        self._waiting: deque[Sent] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._writing = asyncio.Lock()
        self.keys: set[str] = set()
        """Ids of the keys whose requests are captured: what a request looks into."""

    async def load(self) -> None:
        """Read which keys are captured."""
        self.keys |= await self._store.keys()

    async def turn_on(self, key_id: str) -> None:
        """Begin to capture what a key sends."""
        await self._store.turn_on(key_id)
        self.keys.add(key_id)

    async def turn_off(self, key_id: str) -> int:
        """Capture no more of a key, and delete what there is; how many requests that were."""
        self.keys.discard(key_id)  # a set that is changed and never replaced: the entry of inference looks into it
        async with self._writing:
            return await self._store.turn_off(key_id)

    def take(self, sent: Sent) -> None:
        """Take a request; never waits."""
        size = len(sent.prompt) + len(sent.answer)
        if self._bytes + size > WAITING_BYTES:
            log.warning("a request is not captured: too many wait", request_id=sent.request_id)
            return
        self._bytes += size
        self._waiting.append(sent)
        self._arrived.set()

    async def run(self) -> None:
        """Write what arrives, delete what is old; for ever, and once more when it is cancelled."""
        try:
            pruned = 0.0
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PRUNE_SECONDS):
                        await self._arrived.wait()
                await asyncio.sleep(GATHER_SECONDS)
                self._arrived.clear()
                await self.flush()
                if self._clock() - pruned > PRUNE_SECONDS:
                    pruned = self._clock()
                    await self.prune()
        except asyncio.CancelledError:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self.flush()
            raise

    async def flush(self) -> None:
        """Write all that waits; what cannot be written is lost, and said to be."""
        async with self._writing:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                self._bytes -= sum(len(sent.prompt) + len(sent.answer) for sent in batch)
                finished = await asyncio.to_thread(self._finish, batch)
                try:
                    await self._store.add(finished, self.keys)
                except DatabaseError as problem:
                    log.warning("captured requests cannot be written", problem=str(problem), lost=len(batch))

    def _finish(self, batch: list[Sent]) -> list[Captured]:
        return [finished(sent, self._text_characters) for sent in batch]

    async def page(self, key_id: str | None, before: int | None, most: int) -> list[StoredCapture]:
        """At most so many, the newest first; what waits is written before."""
        await self.flush()
        return await self._store.page(key_id, before, most)

    async def prune(self) -> None:
        """Delete what is too old or too much."""
        try:
            await self._store.prune(self._clock() - self._days * 86_400, self._all_characters)
        except DatabaseError as problem:
            log.warning("old captures could not be deleted", problem=str(problem))
