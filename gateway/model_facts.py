"""What is known of the endpoints' models: their files are read beside the event loop, never in it.

The headers and the index of a large model take a second to read. Whoever plans waits for that (`look`), for a while;
whoever only shows something gets what is known (`of`) and, where nothing is known yet, a sentence that says so.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable

from gateway.endpoints.models import UnreadError
from gateway.endpoints.registry import Registry
from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.errors import GatewayError

FACTS_SECONDS = 2.0
"""A model's files are looked at again after this long at the earliest: planning must not mean reading folders."""
LOOK_SECONDS = 5.0
"""So long a plan waits for files to be read; a disk that hangs costs no more than the endpoints on it."""
NOT_HERE = "its model is not downloaded yet"
BEING_READ = "its model's files are being read"

Found = tuple[ModelFacts | None, str]
"""A model's files, or None and why not."""
Key = tuple[str, str | None]


class ModelsSeen:
    """The last look at each model's files. Belongs to one event loop."""

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._clock = clock
        self._seen: dict[Key, tuple[float, Found]] = {}
        self._looking: dict[Key, tuple[asyncio.Task[None], float]] = {}
        """Who looks, and until when that is waited for."""
        self._changes = 0

    def forget(self) -> None:
        """Look at all files afresh: something has changed. Meanwhile models that were there are as they were."""
        self._seen = {key: (-math.inf, found) for key, (_, found) in self._seen.items() if found[0] is not None}
        self._changes += 1

    def of(self, spec: EndpointSpec) -> Found:
        """What is known of a model; what can be told without reading headers is looked up now."""
        key = (spec.model, spec.revision)
        if not self._is_fresh(key) and key not in self._looking:
            try:
                self._seen[key] = self._clock(), _answer(self._registry.glance, spec)
            except UnreadError:
                self._begin(spec)
        return self._seen[key][1] if key in self._seen else (None, BEING_READ)

    async def look(self, specs: Iterable[EndpointSpec]) -> None:
        """Look at the files of these models beside the loop, where that was not done just now; others are forgotten."""
        specs = list(specs)
        wanted = {(spec.model, spec.revision) for spec in specs}
        self._seen = {key: seen for key, seen in self._seen.items() if key in wanted}
        looks = [self._begin(spec) for spec in specs if not self._is_fresh((spec.model, spec.revision))]
        now = self._clock()
        waited_for = [task for task, until in looks if until > now]
        if waited_for:
            await asyncio.wait(waited_for, timeout=LOOK_SECONDS)

    def _is_fresh(self, key: Key) -> bool:
        return key in self._seen and self._clock() - self._seen[key][0] < FACTS_SECONDS

    def _begin(self, spec: EndpointSpec) -> tuple[asyncio.Task[None], float]:
        """One look at a time at each model."""
        key = (spec.model, spec.revision)
        if key not in self._looking:
            task = asyncio.create_task(self._read(key, spec), name="model files")
            task.add_done_callback(lambda _: self._looking.pop(key))
            self._looking[key] = task, self._clock() + LOOK_SECONDS
        return self._looking[key]

    async def _read(self, key: Key, spec: EndpointSpec) -> None:
        changes = self._changes
        found = await asyncio.to_thread(_answer, self._registry.facts, spec)
        if changes == self._changes:  # else what was read may be what was there before the change
            self._seen[key] = (self._clock(), found)


def _answer(ask: Callable[[EndpointSpec], ModelFacts | None], spec: EndpointSpec) -> Found:
    try:
        return ask(spec), NOT_HERE
    except GatewayError as problem:
        return None, problem.message
