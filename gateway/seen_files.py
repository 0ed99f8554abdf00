"""What is known of the files of models and adapters: they are read beside the event loop, never in it.

The headers and the index of a large model take a second to read, and a disk that hangs takes for ever. Whoever plans
waits for that (`look`), for a while; whoever only shows something gets what is known (`of`).
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar

from gateway.errors import GatewayError

FRESH_SECONDS = 2.0
"""Files are looked at again after this long at the earliest: planning must not mean reading folders."""
LOOK_SECONDS = 5.0
"""So long a plan waits for files to be read; a disk that hangs costs no more than the endpoints on it."""
BEING_READ = "its files are being read"


class Source(Protocol):
    """A model or an adapter, as far as it tells where its files come from."""

    @property
    def model(self) -> str:
        """The repository, or the folder."""
        ...

    @property
    def revision(self) -> str | None:
        """Its branch, tag or commit."""
        ...


S = TypeVar("S", bound=Source)
F = TypeVar("F")
Key = tuple[str, str | None]


class SeenFiles(Generic[S, F]):
    """The last look at the files of each source. Belongs to one event loop."""

    def __init__(
        self,
        read: Callable[[S], Awaitable[F | None]],
        clock: Callable[[], float] = time.time,
        *,
        unreadable_stay: bool = False,
    ) -> None:
        """`read` gives None where files have yet to be downloaded, and raises GatewayError where they can't be read.

        `unreadable_stay`: those that were read before are then as they were.
        """
        self._read = read
        self._clock = clock
        self._unreadable_stay = unreadable_stay
        self._seen: dict[Key, tuple[float, F | None, str]] = {}
        self._looking: dict[Key, tuple[asyncio.Task[None], float]] = {}
        """Who looks, and until when that is waited for."""
        self._changes = 0

    def forget(self) -> None:
        """Look at all files afresh: something has changed. Meanwhile those that were there are as they were."""
        self._seen = {key: (-math.inf, found, why) for key, (_, found, why) in self._seen.items() if found is not None}
        self._changes += 1

    def of(self, source: S) -> tuple[F | None, str]:
        """What is known of a source's files: None and why not, or None and nothing where they have to be downloaded."""
        if not self._is_fresh(source):
            self._begin(source)
        _, found, why = self._seen.get(_key(source), (0.0, None, BEING_READ))
        return found, why

    async def look(self, sources: Iterable[S]) -> None:
        """Look at the files of these sources, where that was not done just now; others are forgotten."""
        sources = list(sources)
        wanted = {_key(source) for source in sources}
        self._seen = {key: seen for key, seen in self._seen.items() if key in wanted}
        looks = [self._begin(source) for source in sources if not self._is_fresh(source)]
        now = self._clock()
        waited_for = [task for task, until in looks if until > now]
        if waited_for:
            await asyncio.wait(waited_for, timeout=LOOK_SECONDS)

    def _is_fresh(self, source: S) -> bool:
        seen = self._seen.get(_key(source))
        return seen is not None and self._clock() - seen[0] < FRESH_SECONDS

    def _begin(self, source: S) -> tuple[asyncio.Task[None], float]:
        """One look at a time at each source."""
        key = _key(source)
        if key not in self._looking:
            task = asyncio.create_task(self._look_at(source), name="files")
            task.add_done_callback(lambda _: self._looking.pop(key))
            self._looking[key] = task, self._clock() + LOOK_SECONDS
        return self._looking[key]

    async def _look_at(self, source: S) -> None:
        changes = -1
        while changes != self._changes:  # else what was read may be what was there before the change
            changes = self._changes
            try:
                found, why = await self._read(source), ""
            except GatewayError as problem:
                found, why = None, problem.message
        if why and self._unreadable_stay:
            _, found, _ = self._seen.get(_key(source), (0.0, None, ""))
        self._seen[_key(source)] = (self._clock(), found, why)


def _key(source: Source) -> Key:
    return source.model, source.revision
