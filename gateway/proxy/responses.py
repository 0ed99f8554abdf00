"""Which worker made which response (`/v1/responses`), and for whom: later calls about it must go to the same one.

Engines keep responses and know no keys, so this is also who may ask for one: the key that made it and nobody else.
"""

import re
from collections import OrderedDict
from typing import NamedTuple

from gateway.proxy.upstream import ChunkWatcher

REMEMBERED = 10_000
HEAD_BYTES = 2048
"""A response's id stands in the first bytes of its answer."""
RESPONSE_ID = re.compile(rb'"id" *: *"(resp_[\w-]{1,120})"')


class Made(NamedTuple):
    """Who has made a response, and for whom."""

    worker: str
    endpoint: str
    key: str


class ResponseIds:
    """Responses by their ids, the oldest forgotten first."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, Made] = OrderedDict()

    def find(self, response_id: str, key: str) -> Made | None:
        """Who has made it for this key, if that is remembered."""
        made = self._made.get(response_id)
        return made if made is not None and made.key == key else None

    def remember(self, response_id: str, made: Made) -> None:
        """Note who made it for whom. The first word holds: a request may name the id that its answer is to have."""
        self._made.setdefault(response_id, made)
        if len(self._made) > REMEMBERED:
            self._made.popitem(last=False)

    def watcher(self, made: Made, then: ChunkWatcher | None = None) -> ChunkWatcher:
        """Looks for the id in an answer's first bytes, and shows every chunk to `then`."""
        return _IdWatcher(self, made, then)


class _IdWatcher:
    def __init__(self, ids: ResponseIds, made: Made, then: ChunkWatcher | None) -> None:
        self._ids = ids
        self._made = made
        self._then = then
        self._head = b""
        self._looking = True

    def feed(self, chunk: bytes) -> bytes:
        if self._looking:
            self._look(chunk)
        return chunk if self._then is None else self._then.feed(chunk)

    def _look(self, chunk: bytes) -> None:
        self._head += chunk[: HEAD_BYTES - len(self._head)]
        found = RESPONSE_ID.search(self._head)
        if found:
            self._ids.remember(found.group(1).decode(), self._made)
        self._looking = found is None and len(self._head) < HEAD_BYTES
