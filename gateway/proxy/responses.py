"""Which worker made which response (`/v1/responses`): later calls about it must go to the same one."""

import re
from collections import OrderedDict

from gateway.proxy.upstream import ChunkWatcher

REMEMBERED = 10_000
HEAD_BYTES = 2048
"""A response's id stands in the first bytes of its answer."""
RESPONSE_ID = re.compile(rb'"id" *: *"(resp_[\w-]{1,120})"')


class ResponseIds:
    """Worker ids by response id, the oldest forgotten first."""

    def __init__(self) -> None:
        self._workers: OrderedDict[str, str] = OrderedDict()

    def worker(self, response_id: str) -> str | None:
        """The worker that made it, if it is remembered."""
        return self._workers.get(response_id)

    def remember(self, response_id: str, worker: str) -> None:
        """Note who made it."""
        self._workers[response_id] = worker
        if len(self._workers) > REMEMBERED:
            self._workers.popitem(last=False)

    def watcher(self, worker: str, then: ChunkWatcher | None = None) -> ChunkWatcher:
        """Looks for the id in an answer's first bytes, and shows every chunk to `then`."""
        return _IdWatcher(self, worker, then)


class _IdWatcher:
    def __init__(self, ids: ResponseIds, worker: str, then: ChunkWatcher | None) -> None:
        self._ids = ids
        self._worker = worker
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
            self._ids.remember(found.group(1).decode(), self._worker)
        self._looking = found is None and len(self._head) < HEAD_BYTES
