"""What is noted of a request when it has ended: counts and times, the record of its use, its line in the log.

Most requests are like one before them in all but their times and tokens. What such a kind of requests has in common
(where they are counted, most of their line) is kept, and found by one look-up.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from gateway.errors import ClientGone, GatewayError
from gateway.logs import LineParts, RequestLine, RequestLog
from gateway.metrics import NOWHERE, RequestCounts, Tally
from gateway.proxy.call import Call
from gateway.types import Used

LIMIT = 1024
"""Kinds of requests that are kept; paths with ids in them are as many as there are ids."""

Kind = tuple[str, str, int, str, str, str, bool, str | None]
"""Method, path, status, endpoint, worker, key, whether it streams, and its error's code. No NamedTuple: one is made for
each request."""


class Kept(NamedTuple):
    """What requests of one kind have in common."""

    tally: Tally
    line: LineParts


class Endings:
    """Notes requests that have ended."""

    def __init__(self, counts: RequestCounts, request_log: RequestLog, record: Callable[[Used], None]) -> None:
        self._counts = counts
        self._log = request_log
        self._record = record
        self._kept: dict[Kind, Kept] = {}

    def note(self, call: Call, error: GatewayError | None) -> None:
        """Note one, and settle what its limits let it in with."""
        now = time.time()
        seconds = time.perf_counter() - call.began
        status, code = (call.status, None) if error is None else (error.status, error.code)
        kind = (call.method, call.path, status, call.endpoint, call.worker, call.key, call.stream, code)
        tally, line = self._kept.get(kind) or self._keep(kind)
        tally.whole.observe(seconds)
        if call.waited:
            tally.queued.observe(call.waited)
        if call.metered:
            used = call.used(now, status, seconds, client_gone=isinstance(error, ClientGone))
            if call.ticket is not None:
                call.ticket.settle(used.tokens_in + used.tokens_out, used.cost)
            self._record(used)
        elif call.ticket is not None:
            call.ticket.settle(0)
        self._log.write(line, call.id, seconds * 1000, call.waited * 1000, now)

    def _keep(self, kind: Kind) -> Kept:
        method, path, status, endpoint, worker, key, stream, error = kind
        names = (endpoint or NOWHERE, worker or None, key or None)
        line = RequestLine("", method, path, status, *names, 0, 0, stream, error)
        if len(self._kept) >= LIMIT:
            self._kept.clear()
        kept = self._kept[kind] = Kept(self._counts.tally(endpoint, status), self._log.parts(line))
        return kept
